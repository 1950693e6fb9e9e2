import { readVersion } from '../agent/version.ts'
import { Command, CommanderError } from 'commander'
import { messageOf, SternaError } from '../core/errors.ts'
import { note, printJson } from './output.ts'

/** Builds the program `sterna` from its commands. */
export function buildProgram(commands: readonly Command[]): Command {
  const program = new Command('sterna')
    .description('ordinary PostgreSQL servers become one multi-active database')
    .version(readVersion(), '-V, --version')
    .enablePositionalOptions()
    .addHelpText(
      'after',
      `
Examples:
  sterna up                               # three nodes on this machine
  sterna sql n1 "select version()"
  sterna status --watch
  sterna cluster create shop --node n1=postgresql://me@db1/app --node n2=postgresql://me@db2/app
  sterna help cluster create

Exit codes: 0 ok, 1 failed, 2 usage, 3 something has to be set up first, 4 unreachable, 5 a part is not well.`,
    )
  for (const command of commands) program.addCommand(command)
  throwInsteadOfExit(program)
  return program
}

/**
 * Runs the program and returns the exit code. Errors go to standard error as `error:`, `hint:` and `code:` lines; with
 * --json they are one document on standard output.
 */
export async function runProgram(
  commands: readonly Command[],
  args: readonly string[],
  env: NodeJS.ProcessEnv = process.env,
): Promise<number> {
  const endOfOptions = args.indexOf('--')
  const isJson = (endOfOptions < 0 ? args : args.slice(0, endOfOptions)).includes('--json')
  try {
    await buildProgram(commands).parseAsync(args, { from: 'user' })
    return Number(process.exitCode ?? 0)
  } catch (error) {
    return reportError(error, isJson, env)
  }
}

function reportError(error: unknown, isJson: boolean, env: NodeJS.ProcessEnv): number {
  if (error instanceof CommanderError) {
    // Commander has printed help, the version or its message already.
    if (error.exitCode === 0 || error.code === 'commander.help') return error.exitCode === 0 ? 0 : 2
    const usage = new SternaError('USAGE', {
      reason: error.message.replace(/^error: /, ''),
      help: 'sterna help',
    })
    if (isJson) printJson({ error: usage })
    return usage.exitCode
  }
  if (error instanceof SternaError) {
    if (isJson) printJson({ error })
    else note(`error: ${error.message}`, `hint:  ${error.hint}`, `code:  ${error.code}`)
    if (env['STERNA_DEBUG'] === '1') note(String(error.stack))
    return error.exitCode
  }
  const message = `${error instanceof Error ? error.name : 'error'}: ${messageOf(error).split('\n')[0]}`
  const hint = 'Please report it with what you did; STERNA_DEBUG=1 shows where it happened.'
  if (isJson) printJson({ error: { code: 'BUG', message, hint } })
  else note(`bug: ${message}. ${hint}`)
  if (env['STERNA_DEBUG'] === '1' && error instanceof Error) note(String(error.stack))
  return 1
}

/** Commander would end the process by itself, before what was printed is written. */
function throwInsteadOfExit(command: Command): void {
  command.exitOverride()
  command.configureHelp({ showGlobalOptions: false })
  for (const sub of command.commands) throwInsteadOfExit(sub)
}
