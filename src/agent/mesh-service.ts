import { MeshService } from '../mesh/mesh-service.ts'
import type { ServiceFactory } from './agent.ts'
import { readVersion } from './version.ts'

/** Makes the mesh service of a node from the agent's configuration. */
export const createMeshService: ServiceFactory = (config, { log, httpAddress }) =>
  new MeshService({
    node: config.node,
    target: config.target,
    sternaVersion: readVersion(),
    httpAddress: httpAddress ?? null,
    heartbeatIntervalMs: config.heartbeatIntervalMs,
    maxClockSkewMs: config.maxClockSkewMs,
    slotWalWarningBytes: config.slotWalWarningMb * 1024 ** 2,
    log: log.child({ component: 'mesh' }),
  })
