import { SternaError } from '../core/errors.ts'
import type { PgBinaries } from '../postgres/server/binaries.ts'
import { PgInstance } from '../postgres/server/instance.ts'
import type { OsUser } from '../postgres/server/os-user.ts'
import { serverSettings } from '../postgres/server/settings.ts'
import { startAgent } from './agent-process.ts'
import { type LocalCluster, type LocalNode, localDsn, writeLocalCluster } from './cluster-file.ts'
import { KeptProcess, type KeptProcessOptions, type RunningProcess } from './kept-process.ts'
import { nodePaths } from './layout.ts'

/** A node as the mesh functions take it. */
export interface MeshTarget {
  readonly name: string
  readonly dsn: string
}

/** What the supervisor calls to make a mesh of its servers; injected, so that it can be tested without. */
export interface MeshFunctions {
  /** Idempotent: what an interrupted attempt left undone is completed. */
  createMesh(
    nodes: readonly MeshTarget[],
    options: { readonly name: string; readonly onProgress: (message: string) => void },
  ): Promise<void>
  /** Resolves when every node follows every other one; throws MESH_NOT_READY after the time limit. */
  waitForMesh(
    nodes: readonly MeshTarget[],
    options: { readonly timeoutMs: number; readonly onProgress: (message: string) => void },
  ): Promise<void>
}

/** What the supervisor works with. */
export interface SupervisorOptions {
  readonly cluster: LocalCluster
  readonly password: string
  readonly binaries: PgBinaries
  readonly user: OsUser | null
  readonly mesh: MeshFunctions
  /** The program and the arguments before `agent`. */
  readonly sternaCommand: readonly [string, ...string[]]
  readonly say: (line: string) => void
  /** Settings of the servers on top of the usual ones; for tests. */
  readonly settings?: Readonly<Record<string, string>>
}

const MESH_READY_MS = 60_000
const MESH_TURN_MS = 1_000

/**
 * Runs the servers and agents of a local cluster as its child processes and starts each again that ends. The order:
 * servers, mesh (once in the life of the cluster), agents; and backwards when it stops.
 */
export class Supervisor {
  readonly #options: SupervisorOptions
  readonly #servers: KeptProcess[] = []
  readonly #agents: KeptProcess[] = []
  #stopped: Promise<void> | undefined

  constructor(options: SupervisorOptions) {
    this.#options = options
  }

  /** Starts everything; resolves when it is ready for use. When it rejects, nothing runs any more. */
  async start(): Promise<void> {
    try {
      await this.#startAll()
    } catch (error) {
      await this.stop()
      throw error
    }
  }

  /** Stops the agents and then the servers. A second call waits for the first. */
  async stop(): Promise<void> {
    this.#stopped ??= this.#stopAll()
    return this.#stopped
  }

  async #startAll(): Promise<void> {
    const { cluster, mesh, say } = this.#options
    const isFirst = cluster.meshCreatedAt === null
    await this.#startEach('starting servers', this.#servers, (node) => ({
      name: `${node.name}: server`,
      start: (signal) => this.#startServer(node, signal),
    }))
    const targets = cluster.nodes.map((node) => ({ name: node.name, dsn: this.#dsn(node) }))
    if (isFirst) {
      this.#refuseWhenStopping()
      await mesh.createMesh(targets, { name: cluster.name, onProgress: say })
      await writeLocalCluster({ ...cluster, meshCreatedAt: new Date().toISOString() })
    }
    await this.#startEach('starting agents', this.#agents, (node) => ({
      name: `${node.name}: agent`,
      start: (signal) => this.#startAgent(node, signal),
    }))
    if (isFirst) await this.#waitForMesh(targets)
  }

  /** In short turns, because a stop must not have to wait for the whole time. */
  async #waitForMesh(targets: readonly MeshTarget[]): Promise<void> {
    const { mesh, say } = this.#options
    let last = ''
    const onProgress = (line: string): void => {
      if (line !== last) say(line)
      last = line
    }
    const deadline = Date.now() + MESH_READY_MS
    for (;;) {
      this.#refuseWhenStopping()
      try {
        await mesh.waitForMesh(targets, { timeoutMs: MESH_TURN_MS, onProgress })
        return
      } catch (error) {
        this.#refuseWhenStopping()
        if (!(error instanceof SternaError && error.code === 'MESH_NOT_READY')) throw error
        if (Date.now() < deadline) continue
        // Servers and agents run, and whatever is in the way may go away: the user can look into it best now.
        const whole = new SternaError(error.code, { ...error.facts, seconds: MESH_READY_MS / 1000 })
        say(`warning: ${whole.message}`)
        say(whole.hint)
        return
      }
    }
  }

  async #startEach(
    what: string,
    into: KeptProcess[],
    describe: (node: LocalNode) => Omit<KeptProcessOptions, 'say'>,
  ): Promise<void> {
    const { cluster, say } = this.#options
    this.#refuseWhenStopping()
    say(what)
    const starts = cluster.nodes.map(async (node) => {
      const kept = new KeptProcess({ ...describe(node), say })
      into.push(kept)
      await kept.start()
    })
    // All of them come to an end first: what runs then is known, and can be stopped.
    const results = await Promise.allSettled(starts)
    this.#refuseWhenStopping()
    for (const result of results) if (result.status === 'rejected') throw result.reason
  }

  async #startServer(node: LocalNode, signal: AbortSignal): Promise<RunningProcess> {
    const { cluster, binaries, user, settings } = this.#options
    const instance = new PgInstance({
      name: node.name,
      binaries,
      dataDir: node.dataDir,
      port: node.port,
      logFile: nodePaths(cluster.directory, node.name).serverLog,
      user,
      settings: serverSettings({
        port: node.port,
        clusterName: `sterna ${node.name}`,
        major: binaries.major,
        nodeCount: cluster.nodes.length,
        ...(settings ? { extra: settings } : {}),
      }),
    })
    await instance.start({ signal })
    return { exited: instance.exited, stop: () => instance.stop() }
  }

  async #startAgent(node: LocalNode, signal: AbortSignal): Promise<RunningProcess> {
    const { cluster, sternaCommand } = this.#options
    const paths = nodePaths(cluster.directory, node.name)
    const { name, httpPort } = node
    return startAgent({ node: name, dsn: this.#dsn(node), httpPort, paths, sternaCommand, signal })
  }

  #dsn(node: LocalNode): string {
    return localDsn(this.#options.cluster, node, this.#options.password)
  }

  async #stopAll(): Promise<void> {
    // Agents first: a server that shuts down waits for those who read its log.
    await Promise.all(this.#agents.map((agent) => agent.stop()))
    await Promise.all(this.#servers.map((server) => server.stop()))
  }

  #refuseWhenStopping(): void {
    if (this.#stopped) throw new StoppedError()
  }
}

/** Thrown by a start that a stop interrupted. */
export class StoppedError extends Error {
  override name = 'StoppedError'
  constructor() {
    super('stopped while starting')
  }
}
