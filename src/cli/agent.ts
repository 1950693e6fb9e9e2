import { Command } from 'commander'

import type { ServiceFactory } from '../agent/agent.ts'
import { runAgentProcess } from '../agent/agent-process.ts'
import { loadConfig } from '../agent/config.ts'
import { createLogger } from '../agent/logger.ts'
import { createMeshService } from '../agent/mesh-service.ts'
import type { SettingKey } from '../agent/settings.ts'

interface AgentFlags {
  readonly node?: string
  readonly dsn?: string
  readonly config?: string
  readonly http?: string
  readonly logLevel?: string
  readonly pidFile?: string
}

/** `sterna agent`: the daemon of one node, in the foreground. */
export function agentCommand(createService: ServiceFactory = createMeshService): Command {
  return new Command('agent')
    .description('run the daemon of one node: it pulls the changes of the others and applies them')
    .option('--node <name>', 'name of the node (STERNA_NODE)')
    .option('--dsn <dsn>', "connection string of the node's own server (better: STERNA_DSN, or the file)")
    .option('--config <file>', 'JSON file with settings (STERNA_CONFIG)')
    .option('--http <address>', 'HOST:PORT of /health, /ready, /status and /metrics, or "off" (STERNA_HTTP)')
    .option('--log-level <level>', 'trace, debug, info, warn, error, fatal or silent (STERNA_LOG_LEVEL)')
    .option('--pid-file <path>', 'write the process id here while it runs (STERNA_PID_FILE)')
    .addHelpText(
      'after',
      `
The command line wins over the environment, which wins over the file. The log is JSON on standard error.
SIGTERM or Ctrl-C stops in order within 10 seconds; a second one stops at once.

Examples:
  STERNA_DSN=postgresql://sterna:secret@127.0.0.1:5432/app sterna agent --node n1
  sterna agent --config /etc/sterna/n1.json --pid-file /run/sterna/n1.pid
  STERNA_HTTP_TOKEN=$(cat token) sterna agent --config n1.json --http 0.0.0.0:7101`,
    )
    .action((flags: AgentFlags) => runAgentCommand(flags, createService))
}

async function runAgentCommand(flags: AgentFlags, createService: ServiceFactory): Promise<void> {
  // Whatever stood on the command line, a password too, is not shown by ps from here on.
  process.title = 'sterna agent'
  const commandLine: Partial<Record<SettingKey, string>> = {}
  const set = (key: SettingKey, value: string | undefined): void => {
    if (value !== undefined) commandLine[key] = value
  }
  set('node', flags.node)
  set('dsn', flags.dsn)
  set('http', flags.http)
  set('log_level', flags.logLevel)
  set('pid_file', flags.pidFile)
  const loaded = loadConfig({ commandLine, env: process.env, file: flags.config })
  const { node, logLevel } = loaded.config
  process.title = `sterna agent ${node}`
  const log = createLogger({ node, level: logLevel })
  // The exit is explicit: nothing that is still open may keep a stopped agent alive.
  process.exit(await runAgentProcess(loaded, { log, createService }))
}
