import { formatHttpAddress } from './http-address.ts'
import type { ServiceFactory } from './agent.ts'
import { MeshService } from '../mesh/mesh-service.ts'
import { STERNA_VERSION } from '../core/version.ts'

/** Makes the mesh service of a node from the agent's configuration. */
export const createMeshService: ServiceFactory = (config, log) =>
  new MeshService({
    node: config.node,
    target: config.target,
    sternaVersion: STERNA_VERSION,
    httpAddress: config.http ? formatHttpAddress(config.http) : null,
    heartbeatIntervalMs: config.heartbeatIntervalMs,
    maxClockSkewMs: config.maxClockSkewMs,
    log: log.child({ component: 'mesh' }),
  })
