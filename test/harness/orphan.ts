/** A test process that starts a server and is then killed: see guard.pg.test.ts. */
import { startServers } from './servers.ts'

const servers = await startServers({ count: 1 })
console.log(JSON.stringify({ dataDir: servers.nodes[0]!.dataDir, pid: servers.nodes[0]!.pid }))
await new Promise(() => {
  setInterval(() => {}, 1000)
})
