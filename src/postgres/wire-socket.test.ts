import { once } from 'node:events'
import { connect, createServer, type AddressInfo } from 'node:net'
import { expect, onTestFinished, test } from 'vitest'

import { parseDsn } from './dsn.ts'
import { WireSocket } from './wire-socket.ts'

test('a connection that somebody pauses while it closes is closed all the same, and at once', async () => {
  const notice = Buffer.from('N\0\0\0\x05\0')
  const server = createServer((socket) => {
    socket.resume()
    socket.end(Buffer.concat(Array.from({ length: 100_000 }, () => notice)))
  }).listen(0, '127.0.0.1')
  onTestFinished(() => void server.close())
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const socket = connect(port, '127.0.0.1')
  await once(socket, 'connect')
  const wire = WireSocket.adopt(parseDsn(`postgresql://u@127.0.0.1:${port}/d`), socket)
  const began = performance.now()
  const ended = wire.end(Buffer.from('bye'))
  wire.pause()
  await ended
  expect(performance.now() - began).toBeLessThan(1000)
})
