import { constants } from 'node:os'

import { SternaError } from '../core/errors.ts'
import { runAgent, type ServiceFactory } from './agent.ts'
import type { LoadedConfig } from './config.ts'
import type { Logger } from './logger.ts'
import { removePidFile, writePidFile } from './pid-file.ts'

/** Exit code after a bug (sysexits EX_SOFTWARE): the supervisor should restart the agent. */
export const EXIT_BUG = 70

const STOP_SIGNALS = ['SIGTERM', 'SIGINT', 'SIGHUP'] as const

/** Whoever sends SIGTERM waits ten seconds before SIGKILL; the last log line should come before that. */
const STOP_DEADLINE_MS = 9_000

/** What runAgentProcess needs beside the configuration. */
export interface AgentProcessOptions {
  readonly log: Logger
  readonly createService: ServiceFactory
}

/**
 * Runs an agent as this process: signals stop it, a second one at once; bugs end it with EXIT_BUG; the pid file is
 * there while it runs. Resolves with the exit code. Installs handlers that stay: call it once in a process.
 */
export async function runAgentProcess(
  { config, warnings }: LoadedConfig,
  options: AgentProcessOptions,
): Promise<number> {
  const { log, createService } = options
  const { pidFile } = config
  const stop = new AbortController()
  const onBug = (error: unknown): never => {
    log.fatal({ err: error }, 'agent crashed on a bug')
    process.exit(EXIT_BUG)
  }
  process.on('uncaughtException', onBug)
  process.on('unhandledRejection', onBug)
  for (const signal of STOP_SIGNALS) {
    process.on(signal, () => {
      if (stop.signal.aborted) process.exit(128 + constants.signals[signal])
      log.info({ signal }, 'agent stopping')
      setTimeout(() => {
        log.error({ deadlineMs: STOP_DEADLINE_MS }, 'agent did not stop in time and ends as it is')
        process.exit(1)
      }, STOP_DEADLINE_MS)
      stop.abort()
    })
  }
  if (pidFile !== undefined) process.on('exit', () => removePidFile(pidFile))
  for (const warning of warnings) log.warn({ warning }, 'agent configuration')
  try {
    const onStarted = (): void => {
      if (pidFile !== undefined) writePidFile(pidFile)
    }
    await runAgent(config, { signal: stop.signal, log, createService, onStarted })
    return 0
  } catch (error) {
    if (!(error instanceof SternaError)) return onBug(error)
    log.fatal({ err: error }, 'agent cannot run')
    return error.exitCode
  }
}
