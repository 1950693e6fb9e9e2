import { AssertionError } from '../core/assert.ts'
import type { ServiceFactory } from './agent.ts'

/** Makes the mesh service of a node from the agent's configuration. */
export const createMeshService: ServiceFactory = () => {
  throw new AssertionError('src/mesh/mesh-service.ts is not there yet')
}
