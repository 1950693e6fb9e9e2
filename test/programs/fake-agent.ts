/** `sterna agent` around a service of a given behaviour: `node fake-agent.ts BEHAVIOUR [OPTION...]`. */
import { agentCommand } from '../../src/cli/agent.ts'
import { AssertionError } from '../../src/core/assert.ts'
import { SternaError } from '../../src/core/errors.ts'
import { FakeService } from '../harness/fake-service.ts'

const behaviour = process.argv[2]

class OddService extends FakeService {
  override async run(signal: AbortSignal): Promise<void> {
    switch (behaviour) {
      case 'bug':
        throw new AssertionError('queue is negative')
      case 'stray-bug':
        setImmediate(() => {
          throw new TypeError('undefined is not a function')
        })
        return super.run(signal)
      case 'stray-rejection':
        void Promise.reject(new TypeError('nobody waits for this'))
        return super.run(signal)
      case 'pointless':
        throw new SternaError('DATABASE_MISSING', { address: 'db:5432/app', database: 'app' })
      case 'ends':
        return undefined
      case 'hangs':
        setInterval(() => {}, 1_000)
        await super.run(signal)
        return new Promise(() => {})
      default:
        return super.run(signal)
    }
  }
}

await agentCommand(() => new OddService()).parseAsync(process.argv.slice(3), { from: 'user' })
