import { assert } from '../core/assert.ts'
import type { AgentConfig } from './config.ts'
import { formatHttpAddress } from './http-address.ts'
import { listenHttp, type AgentHttp } from './http.ts'
import type { Logger } from './logger.ts'
import { createMetrics } from './metrics.ts'
import type { Service } from './service.ts'

/** Makes the service that an agent runs. */
export type ServiceFactory = (config: AgentConfig, log: Logger) => Service

/** What runAgent needs beside the configuration. */
export interface AgentOptions {
  /** Aborting it stops the agent. */
  readonly signal: AbortSignal
  readonly log: Logger
  readonly createService: ServiceFactory
  /** Called when the agent listens, with the address of its HTTP server, before the service runs. */
  readonly onStarted?: (http: string | undefined) => void
}

/**
 * The daemon of one node: puts the parts together, runs them until `signal` aborts, and takes them down in order.
 * Resolves after a clean stop.
 * @throws AGENT_HTTP_PORT_BUSY, AGENT_HTTP_FAILED, and what the service ends with
 */
export async function runAgent(config: AgentConfig, options: AgentOptions): Promise<void> {
  const { signal, log, createService } = options
  if (signal.aborted) return
  const service = createService(config, log)
  const http = config.http && (await startHttp(config, config.http, service, log))
  // Nobody should be told "ready" by an agent that is on its way out.
  signal.addEventListener('abort', () => void http?.close(), { once: true })
  try {
    const address = http && formatHttpAddress(http.address)
    log.info({ http: address ?? 'off', heartbeatIntervalMs: config.heartbeatIntervalMs }, 'agent started')
    options.onStarted?.(address)
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
  service: Service,
  log: Logger,
): Promise<AgentHttp> {
  return listenHttp({
    address,
    token: config.httpToken,
    report: () => service.report(),
    metrics: createMetrics(config.node),
    log: log.child({ component: 'http' }),
  })
}
