import { chmod, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { formatDsn } from '../../src/postgres/dsn.ts'
import { findBinaries, type PgBinaries } from '../../src/postgres/server/binaries.ts'
import { copyDataDir } from '../../src/postgres/server/data-dir.ts'
import { reachableBinaries } from '../../src/postgres/server/embedded.ts'
import { PgInstance } from '../../src/postgres/server/instance.ts'
import { type OsUser, serverUser } from '../../src/postgres/server/os-user.ts'
import { serverSettings } from '../../src/postgres/server/settings.ts'
import { guardDirectory, guardServer } from './guard.ts'
import { releasePort, reservePorts } from './ports.ts'
import { templateDataDir, TEST_LOGIN } from './templates.ts'

/** `15` to `18` are the embedded ones (the system's where npm has none), `system15` is the machine's own. */
export type ServerVersion = '15' | '16' | '17' | '18' | 'system15'

/** What to start. */
export interface StartServersOptions {
  readonly count: number
  /** One for all, or one per node; 18 when not given. */
  readonly version?: ServerVersion | readonly ServerVersion[]
  /** Settings on top of those of a local cluster with fsync off. */
  readonly settings?: Readonly<Record<string, string>>
}

/** One running server of a test. */
export interface TestServer {
  /** `n1`, `n2`, ... */
  readonly name: string
  readonly port: number
  /** Of database `app` as superuser `sterna`, with the password. */
  readonly dsn: string
  readonly dataDir: string
  readonly logFile: string
  readonly binaries: PgBinaries
  /** The server's process id; undefined while it does not run. */
  readonly pid: number | undefined
  /** SIGKILL to the server's main process; resolves when it is gone. */
  kill9(): Promise<void>
  /** A fast shutdown. */
  stop(): Promise<void>
  /** Starts it again on the same port and data; optionally with more settings, and with more environment. */
  start(
    settings?: Readonly<Record<string, string>>,
    environment?: Readonly<Record<string, string>>,
  ): Promise<void>
}

/** The servers of a test. */
export interface TestServers {
  readonly nodes: readonly TestServer[]
  /** Ends all of them and removes their directories. */
  stop(): Promise<void>
}

/** Faster, and nothing is lost by a process that dies: only a power cut needs fsync. */
const TEST_SETTINGS = { fsync: 'off', full_page_writes: 'off', shared_buffers: '64MB' } as const

/**
 * Starts real servers with everything that a node needs (wal_level, database `app`, role `sterna`). They end with the
 * test process, even when it is killed.
 */
export async function startServers(options: StartServersOptions): Promise<TestServers> {
  const user = await serverUser()
  const base = await mkdtemp(join(tmpdir(), 'sterna-test-'))
  guardDirectory(base)
  await chmod(base, 0o711)
  const ports = await reservePorts(options.count)
  const versions = Array.from({ length: options.count }, (_, i) => versionOf(options.version, i))
  const templates = await templatesOf([...new Set(versions)], user)
  const nodes = await Promise.all(
    versions.map(async (version, i) => {
      const { binaries, template } = templates.get(version)!
      const node = new Node(`n${i + 1}`, ports[i]!, join(base, `n${i + 1}`), binaries, user, options)
      await node.create(template)
      await node.start()
      return node
    }),
  )
  return {
    nodes,
    async stop() {
      await Promise.all(nodes.map((node) => node.stop()))
      await rm(base, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 })
      for (const port of ports) releasePort(port)
    },
  }
}

function versionOf(version: StartServersOptions['version'], index: number): ServerVersion {
  const one = typeof version === 'string' ? version : version?.[index]
  return one ?? '18'
}

type Template = { readonly binaries: PgBinaries; readonly template: string }

async function templatesOf(
  versions: readonly ServerVersion[],
  user: OsUser | null,
): Promise<Map<ServerVersion, Template>> {
  const templates = new Map<ServerVersion, Template>()
  for (const version of versions) {
    const binaries = await reachableBinaries(await findBinaries(version), user)
    templates.set(version, { binaries, template: await templateDataDir(binaries, user) })
  }
  return templates
}

class Node implements TestServer {
  readonly name: string
  readonly port: number
  readonly dsn: string
  readonly dataDir: string
  readonly logFile: string
  readonly binaries: PgBinaries
  readonly #user: OsUser | null
  readonly #options: StartServersOptions
  #instance: PgInstance | undefined

  constructor(
    name: string,
    port: number,
    directory: string,
    binaries: PgBinaries,
    user: OsUser | null,
    options: StartServersOptions,
  ) {
    this.name = name
    this.port = port
    this.dataDir = join(directory, 'data')
    this.logFile = join(directory, 'server.log')
    this.binaries = binaries
    this.#user = user
    this.#options = options
    const { role, password, database } = TEST_LOGIN
    this.dsn = formatDsn({ host: '127.0.0.1', port, user: role, password, database })
  }

  get pid(): number | undefined {
    return this.#instance?.pid
  }

  async create(template: string): Promise<void> {
    const directory = join(this.dataDir, '..')
    await mkdir(directory)
    await chmod(directory, 0o711)
    guardServer(this.dataDir)
    await copyDataDir(template, this.dataDir, { binaries: this.binaries, user: this.#user, ...TEST_LOGIN })
  }

  async start(
    settings: Readonly<Record<string, string>> = {},
    environment?: Readonly<Record<string, string>>,
  ): Promise<void> {
    const extra = { ...TEST_SETTINGS, ...this.#options.settings, ...settings }
    this.#instance = new PgInstance({
      name: this.name,
      binaries: environment ? await this.#wrapBinaries(environment) : this.binaries,
      dataDir: this.dataDir,
      port: this.port,
      logFile: this.logFile,
      user: this.#user,
      settings: serverSettings({
        port: this.port,
        clusterName: `sterna test ${this.name}`,
        major: this.binaries.major,
        nodeCount: this.#options.count,
        extra,
      }),
    })
    await this.#instance.start({ readyMs: 60_000 })
  }

  /** Servers get no environment from us: a script that becomes the server gives it to them. */
  async #wrapBinaries(environment: Readonly<Record<string, string>>): Promise<PgBinaries> {
    const binDir = join(this.dataDir, '..', 'bin')
    await mkdir(binDir, { recursive: true })
    await chmod(binDir, 0o755)
    const script = join(binDir, 'postgres')
    const variables = Object.entries(environment).map(([name, value]) => `${name}='${value}'`)
    await writeFile(
      script,
      `#!/bin/sh\nexport ${variables.join(' ')}\nexec ${join(this.binaries.binDir, 'postgres')} "$@"\n`,
    )
    await chmod(script, 0o755)
    return { ...this.binaries, binDir }
  }

  async stop(): Promise<void> {
    await this.#instance?.stop({ fastMs: 10_000 })
  }

  async kill9(): Promise<void> {
    await this.#instance?.kill9()
  }
}
