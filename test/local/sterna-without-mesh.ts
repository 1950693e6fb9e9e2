/** `sterna` with the real up and down, but an agent that only answers on HTTP and a mesh that is only noted down. */
import { appendFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { Command } from 'commander'
import { downCommand } from '../../src/cli/down.ts'
import { runProgram } from '../../src/cli/program.ts'
import { upCommand } from '../../src/cli/up.ts'
import { SternaError } from '../../src/core/errors.ts'

const agent = new Command('agent')
  .requiredOption('--node <node>')
  .requiredOption('--http <address>')
  .action(async ({ node, http }: { node: string; http: string }) => {
    if (!process.env['STERNA_DSN']?.includes('@127.0.0.1:')) throw new Error('no DSN in the environment')
    const [host, port] = http.split(':')
    const server = createServer((_, response) => response.end('{}'))
    server.listen(Number(port), host)
    const { promise, resolve } = Promise.withResolvers<void>()
    process.once('SIGTERM', resolve)
    console.error(`agent of ${node} runs`)
    await promise
    server.close()
    server.closeAllConnections()
  })

const up = upCommand({
  mesh: {
    async createMesh(nodes, options) {
      options.onProgress(`mesh of ${nodes.map(({ name }) => name).join(', ')}`)
      const file = process.env['TEST_MESH_LOG']
      if (file) await appendFile(file, `${options.name} ${nodes.length}\n`)
      if (process.env['TEST_MESH_FAILS']) throw new Error('the mesh was told to fail')
    },
    async waitForMesh(_nodes, { timeoutMs }) {
      if (!process.env['TEST_MESH_WAITS']) return
      await delay(timeoutMs)
      throw new SternaError('MESH_NOT_READY', { seconds: 1, missing: 'all' })
    },
  },
  sternaCommand: [process.execPath, fileURLToPath(import.meta.url)],
  settings: { fsync: 'off', shared_buffers: '32MB' },
})

process.exitCode = await runProgram([up, downCommand(), agent], process.argv.slice(2))
