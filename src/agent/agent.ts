import { assert } from '../core/assert.ts'
import type { NodeReport } from '../mesh/report.ts'
import type { AgentConfig } from './config.ts'
import { formatHttpAddress } from './http-address.ts'
import { listenHttp, type AgentHttp } from './http.ts'
import type { Logger } from './logger.ts'
import { createMetrics } from './metrics.ts'
import type { Service } from './service.ts'

/** What a service gets from its agent beside the configuration. */
export interface ServiceSurroundings {
  readonly log: Logger
  /** Where the agent's HTTP server listens; undefined where it has none. */
  readonly httpAddress: string | undefined
}

/** Makes the service that an agent runs. */
export type ServiceFactory = (config: AgentConfig, surroundings: ServiceSurroundings) => Service

/** What runAgent needs beside the configuration. */
export interface AgentOptions {
  /** Aborting it stops the agent. */
  readonly signal: AbortSignal
  readonly log: Logger
  readonly createService: ServiceFactory
  /** Called when the agent listens, before the service runs. */
  readonly onStarted?: () => void
}

/**
 * The daemon of one node: puts the parts together, runs them until `signal` aborts, and takes them down in order.
 * Resolves after a clean stop.
 * @throws AGENT_HTTP_PORT_BUSY, AGENT_HTTP_FAILED, and what the service ends with
 */
export async function runAgent(config: AgentConfig, options: AgentOptions): Promise<void> {
  const { signal, log, createService } = options
  if (signal.aborted) return
  let service: Service | undefined
  const http = config.http && (await startHttp(config, config.http, () => service!.report(), log))
  // Nobody should be told "ready" by an agent that is on its way out.
  signal.addEventListener('abort', () => void http?.close(), { once: true })
  try {
    const httpAddress = http && formatHttpAddress(http.address)
    // Before anything else can happen: a request that has come in meanwhile is read after this.
    service = createService(config, { log, httpAddress })
    log.info({ http: httpAddress ?? 'off', heartbeatIntervalMs: config.heartbeatIntervalMs }, 'agent started')
    options.onStarted?.()
    await service.run(signal)
    assert(signal.aborted, 'the service ended without being told to')
  } finally {
    await http?.close()
  }
  log.info('agent stopped')
}

function startHttp(
  config: AgentConfig,
  address: NonNullable<AgentConfig['http']>,
  report: () => NodeReport,
  log: Logger,
): Promise<AgentHttp> {
  return listenHttp({
    address,
    token: config.httpToken,
    report,
    metrics: createMetrics(config.node),
    log: log.child({ component: 'http' }),
  })
}
