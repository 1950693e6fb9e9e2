import { createMesh } from '../../src/mesh/create-cluster.ts'
import { subscriptionName } from '../../src/mesh/mesh-node.ts'
import { waitForMesh } from '../../src/mesh/wait-for-mesh.ts'
import { PgConnection, type Row } from '../../src/postgres/connection.ts'
import { parseDsn } from '../../src/postgres/dsn.ts'
import type { SqlParam } from '../../src/postgres/text-values.ts'
import { startAgent, type TestAgent } from './agent.ts'
import { startRelay, type Relay } from './relay.ts'
import { startServers, type StartServersOptions, type TestServer } from './servers.ts'
import { waitUntil } from './wait.ts'

const READY_TIMEOUT_MS = 60_000

export interface StartMeshOptions extends StartServersOptions {
  /** SQL run on each server before it becomes a node. */
  readonly schema?: string
  /** Puts a relay into the link of each ordered pair, so that it can be cut; see `link`. */
  readonly relays?: boolean
  /** More environment for the agents. */
  readonly agentEnv?: Readonly<Record<string, string>>
}

/** A node of a test mesh: its server, its agent, and a connection for the test. */
export interface MeshTestNode {
  readonly name: string
  readonly server: TestServer
  readonly agent: TestAgent
  readonly dsn: string
  /** Runs one statement; the connection is made anew when the server was restarted. */
  query<R = Row>(sql: string, params?: readonly SqlParam[]): Promise<R[]>
  exec(sql: string): Promise<void>
}

export interface TestMesh {
  readonly nodes: readonly MeshTestNode[]
  /** The relay by which `subscriber` reaches `provider`; only with `relays`. */
  link(subscriber: string, provider: string): Relay
  /** Waits until everything committed before the call is applied everywhere. */
  settle(timeoutMs?: number): Promise<void>
  stop(): Promise<void>
}

/** Starts servers and agents, as real processes, and makes them a full mesh that replicates. */
export async function startMesh(options: StartMeshOptions): Promise<TestMesh> {
  const servers = await startServers(options)
  const relays = new Map<string, Relay>()
  const agents: TestAgent[] = []
  const clients = servers.nodes.map((server) => new Client(server.dsn))
  const stop = async (): Promise<void> => {
    await Promise.all(agents.map((agent) => agent.stop()))
    await Promise.all(clients.map((client) => client.close()))
    await servers.stop()
    await Promise.all([...relays.values()].map((relay) => relay.close()))
  }
  try {
    const members = servers.nodes.map(({ name, dsn }) => ({ name, dsn }))
    if (options.schema !== undefined) await Promise.all(clients.map((client) => client.exec(options.schema!)))
    await createMesh(members, { name: 'test' })
    if (options.relays) await insertRelays(servers.nodes, clients, relays)
    agents.push(
      ...(await Promise.all(
        servers.nodes.map(({ name, dsn }) => startAgent({ node: name, dsn, env: options.agentEnv ?? {} })),
      )),
    )
    await waitForMesh(members, { timeoutMs: READY_TIMEOUT_MS })
    const nodes = servers.nodes.map((server, i) => ({
      name: server.name,
      server,
      agent: agents[i]!,
      dsn: server.dsn,
      query: async <R = Row>(sql: string, params: readonly SqlParam[] = []) =>
        clients[i]!.query<R>(sql, params),
      exec: async (sql: string) => clients[i]!.exec(sql),
    }))
    return {
      nodes,
      link(subscriber, provider) {
        const relay = relays.get(`${subscriber} ${provider}`)
        if (!relay) throw new Error(`no relay from ${subscriber} to ${provider}`)
        return relay
      },
      settle: (timeoutMs) => settle(nodes, timeoutMs),
      stop,
    }
  } catch (error) {
    await stop()
    throw error
  }
}

async function insertRelays(
  servers: readonly TestServer[],
  clients: readonly Client[],
  relays: Map<string, Relay>,
): Promise<void> {
  for (const [i, subscriber] of servers.entries()) {
    for (const provider of servers) {
      if (provider === subscriber) continue
      const relay = await startRelay({ to: { host: '127.0.0.1', port: provider.port } })
      relays.set(`${subscriber.name} ${provider.name}`, relay)
      await clients[i]!.query('update sterna.subscription set provider_dsn = $2 where sub_name = $1', [
        subscriptionName(subscriber.name, provider.name),
        provider.dsn.replace(`:${provider.port}/`, `:${relay.port}/`),
      ])
    }
  }
}

/** Marks a position on every node and waits until every other node has passed it. */
async function settle(nodes: readonly MeshTestNode[], timeoutMs = 60_000): Promise<void> {
  const marks = await Promise.all(
    nodes.map(async (node) => {
      const [row] = await node.query<{ id: number; lsn: string }>(
        'select l.node_id as id, sterna.sync_event() as lsn from sterna.local_node l',
      )
      return { node, ...row! }
    }),
  )
  for (const mark of marks) {
    for (const subscriber of nodes) {
      if (subscriber === mark.node) continue
      await waitUntil(
        `${subscriber.name} has everything of ${mark.node.name} up to ${mark.lsn}`,
        async () => {
          const [row] = await subscriber.query<{ done: boolean }>(
            'select pg_replication_origin_progress(sterna.origin_name($1), false) >= $2::pg_lsn as done',
            [mark.id, mark.lsn],
          )
          return row?.done === true
        },
        timeoutMs,
      )
    }
  }
}

/** A connection that is made anew after the server was restarted. */
class Client {
  readonly #dsn: string
  #connection: PgConnection | undefined

  constructor(dsn: string) {
    this.#dsn = dsn
  }

  async query<R>(sql: string, params: readonly SqlParam[]): Promise<R[]> {
    return (await (await this.#open()).query<R>(sql, params)).rows
  }

  async exec(sql: string): Promise<void> {
    await (await this.#open()).exec(sql)
  }

  async close(): Promise<void> {
    await this.#connection?.close()
  }

  async #open(): Promise<PgConnection> {
    if (this.#connection) return this.#connection
    const connection = await PgConnection.connect(parseDsn(this.#dsn), { applicationName: 'test' })
    connection.onLost = () => {
      this.#connection = undefined
    }
    this.#connection = connection
    return connection
  }
}
