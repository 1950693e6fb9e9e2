/** The entry of `sterna`: runs the program with the arguments of this process. */
import { agentCommand } from './agent.ts'
import { downCommand } from './down.ts'
import { dsnCommand } from './dsn.ts'
import { runProgram } from './program.ts'
import { sqlCommand } from './sql.ts'
import { upCommand } from './up.ts'

const commands = [upCommand(), downCommand(), dsnCommand(), sqlCommand(), agentCommand()]

process.exitCode = await runProgram(commands, process.argv.slice(2))
