/** The entry of `sterna`: runs the program with the arguments of this process. */
import { agentCommand } from './agent.ts'
import { clusterCommand } from './cluster.ts'
import { conflictsCommand } from './conflicts.ts'
import { doctorCommand } from './doctor.ts'
import { downCommand } from './down.ts'
import { dsnCommand } from './dsn.ts'
import { exceptionsCommand } from './exceptions.ts'
import { nodeCommand } from './node.ts'
import { runProgram } from './program.ts'
import { repsetCommand } from './repset.ts'
import { sqlCommand } from './sql.ts'
import { statusCommand } from './status.ts'
import { subCommand } from './sub.ts'
import { tableCommand } from './table.ts'
import { upCommand } from './up.ts'

const commands = [
  upCommand(),
  downCommand(),
  statusCommand(),
  dsnCommand(),
  sqlCommand(),
  doctorCommand(),
  clusterCommand(),
  nodeCommand(),
  subCommand(),
  repsetCommand(),
  tableCommand(),
  conflictsCommand(),
  exceptionsCommand(),
  agentCommand(),
]

process.exitCode = await runProgram(commands, process.argv.slice(2))
