import { FakeService } from '../../test/harness/fake-service.ts'
import { serviceContract } from '../../test/harness/service-contract.ts'

serviceContract('FakeService', () => new FakeService())
