import { createMesh } from '../../src/mesh/create-cluster.ts'
import { subscriptionName } from '../../src/mesh/mesh-node.ts'
import { waitForMesh } from '../../src/mesh/wait-for-mesh.ts'
import { quoteLiteral } from '../../src/core/quote.ts'
import { PgConnection, type Row } from '../../src/postgres/connection.ts'
import { parseDsn } from '../../src/postgres/dsn.ts'
import type { SqlParam } from '../../src/postgres/text-values.ts'
import { startAgent, type TestAgent } from './agent.ts'
import { releasePort, reservePorts } from './ports.ts'
import { startRelay, type Relay } from './relay.ts'
import { startServers, type StartServersOptions, type TestServer } from './servers.ts'
import { TEST_LOGIN } from './templates.ts'
import { waitUntil } from './wait.ts'

const READY_TIMEOUT_MS = 60_000

export interface StartMeshOptions extends StartServersOptions {
  /** SQL run on each server before it becomes a node. */
  readonly schema?: string
  /** Puts a relay into the link of each ordered pair, so that it can be cut; see `link`. */
  readonly relays?: boolean
  /** Password of role `sterna` instead of the one that all tests have, so that it can be searched for. */
  readonly password?: string
  /** Whether the agents answer HTTP; see `http` of a node. */
  readonly http?: boolean
  /** More environment for the agents. */
  readonly agentEnv?: Readonly<Record<string, string>>
}

/** A node of a test mesh: its server, its agent, and a connection for the test. */
export interface MeshTestNode {
  readonly name: string
  readonly server: TestServer
  readonly agent: TestAgent
  readonly dsn: string
  /** Base URL of the agent; empty without `http`. */
  readonly http: string
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
  const httpPorts = options.http ? await reservePorts(options.count) : []
  const dsnOf = ({ dsn }: TestServer): string =>
    options.password === undefined
      ? dsn
      : dsn.replace(`:${TEST_LOGIN.password}@`, `:${encodeURIComponent(options.password)}@`)
  const clients = servers.nodes.map((server) => new Client(dsnOf(server)))
  const stop = async (): Promise<void> => {
    await Promise.all(agents.map((agent) => agent.stop()))
    await Promise.all(clients.map((client) => client.close()))
    await servers.stop()
    await Promise.all([...relays.values()].map((relay) => relay.close()))
    httpPorts.forEach(releasePort)
  }
  try {
    const { password } = options
    if (password !== undefined)
      await Promise.all(servers.nodes.map((server) => changePassword(server, password)))
    const members = servers.nodes.map((server) => ({ name: server.name, dsn: dsnOf(server) }))
    if (options.schema !== undefined) await Promise.all(clients.map((client) => client.exec(options.schema!)))
    await createMesh(members, { name: 'test' })
    // Sessions from before do not know what the node gives its role, such as the search_path.
    await Promise.all(clients.map((client) => client.close()))
    if (options.relays) await insertRelays(servers.nodes, dsnOf, clients, relays)
    agents.push(
      ...(await Promise.all(
        members.map(({ name, dsn }, i) =>
          startAgent({
            node: name,
            dsn,
            env: options.agentEnv ?? {},
            http: options.http ? `127.0.0.1:${httpPorts[i]}` : undefined,
          }),
        ),
      )),
    )
    await waitForMesh(members, { timeoutMs: READY_TIMEOUT_MS })
    const nodes = servers.nodes.map((server, i) => ({
      name: server.name,
      server,
      agent: agents[i]!,
      dsn: members[i]!.dsn,
      http: options.http ? `http://127.0.0.1:${httpPorts[i]}` : '',
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
    const logs = agents.map((agent, i) => `${servers.nodes[i]!.name}: ${warningsIn(agent.log)}`)
    throw new Error(`the mesh did not start; the agents said:\n${logs.join('\n')}`, { cause: error })
  }
}

/** The last warnings and errors of an agent's log; its last lines where there are none. */
function warningsIn(log: string): string {
  const lines = log.trimEnd().split('\n')
  const warnings = lines.filter((line) => /"level":("?warn|"?error|"?fatal|[456]0)/.test(line))
  return (warnings.length > 0 ? warnings : lines).slice(-5).join('\n')
}

async function insertRelays(
  servers: readonly TestServer[],
  dsnOf: (server: TestServer) => string,
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
        dsnOf(provider).replace(`:${provider.port}/`, `:${relay.port}/`),
      ])
    }
  }
}

async function changePassword(server: TestServer, password: string): Promise<void> {
  const connection = await PgConnection.connect(parseDsn(server.dsn), { applicationName: 'test' })
  try {
    await connection.exec(`alter role ${TEST_LOGIN.role} password ${quoteLiteral(password)}`)
  } finally {
    await connection.close()
  }
}

/**
 * Marks a position on every node and waits until every other node *shows* it: the mark is a row, visible only with all
 * that was committed before it. (An origin's progress moves a moment before the commit is visible.)
 */
async function settle(nodes: readonly MeshTestNode[], timeoutMs = 60_000): Promise<void> {
  const marks = await Promise.all(
    nodes.map(async (node) => {
      await node.query('select sterna.sync_event()')
      const [row] = await node.query<{ id: number; requests: bigint }>(
        'select e.node_id as id, e.requests from sterna.sync_event e join sterna.local_node l using (node_id)',
      )
      return { node, ...row! }
    }),
  )
  for (const mark of marks) {
    for (const subscriber of nodes) {
      if (subscriber === mark.node) continue
      await waitUntil(
        `${subscriber.name} has everything of ${mark.node.name}`,
        async () => {
          const [row] = await subscriber.query<{ requests: bigint }>(
            'select requests from sterna.sync_event where node_id = $1',
            [mark.id],
          )
          return row !== undefined && row.requests >= mark.requests
        },
        timeoutMs,
      ).catch(async (error: unknown) => {
        throw new Error(`${(error as Error).message}; ${await errorsShown(subscriber)}`, { cause: error })
      })
    }
  }
}

/** What a node's status says about why it is behind. */
async function errorsShown(node: MeshTestNode): Promise<string> {
  const rows = await node.query<{ name: string; status: string; error: string | null }>(
    'select subscription_name as name, status, last_error as error from sterna.sub_show_status()',
  )
  const shown = rows.map(({ name, status, error }) => `${name}: ${status}${error ? `, ${error}` : ''}`)
  const { agent } = node
  if (agent.ended !== undefined)
    shown.push(`its agent has ended with ${agent.ended}:\n${agent.log.slice(-4000)}`)
  return shown.join('; ')
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

  /** Closes its connection; the next call makes another. */
  async close(): Promise<void> {
    const connection = this.#connection
    this.#connection = undefined
    await connection?.close()
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
