import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { type Relay, startRelay } from './relay.ts'
import { waitUntil } from './wait.ts'

let echo: Server
let relay: Relay
const clients: Socket[] = []

beforeEach(async () => {
  echo = createServer((socket) => socket.on('error', () => {}).pipe(socket)).listen(0, '127.0.0.1')
  await once(echo, 'listening')
  relay = await startRelay({ to: { host: '127.0.0.1', port: (echo.address() as AddressInfo).port } })
})

afterEach(async () => {
  for (const client of clients.splice(0)) client.destroy()
  await relay.close()
  echo.close()
})

function open(): { socket: Socket; received: () => string; closed: Promise<unknown> } {
  const socket = connect(relay.port, '127.0.0.1').on('error', () => {})
  clients.push(socket)
  let text = ''
  socket.on('data', (chunk: Buffer) => (text += chunk.toString()))
  return { socket, received: () => text, closed: new Promise((resolve) => socket.once('close', resolve)) }
}

test('forwards both ways and much', async () => {
  const { socket, received } = open()
  const text = 'x'.repeat(5_000_000)
  socket.write(text)
  await waitUntil('everything came back', () => received().length >= text.length)
  expect(received() === text).toBe(true)
})

test('a delay keeps the order and holds data back', async () => {
  relay.setDelay(50)
  const { socket, received } = open()
  await once(socket, 'connect')
  const start = performance.now()
  for (let i = 0; i < 10; i++) socket.write(`${i}`)
  await waitUntil('all came back', () => received() === '0123456789')
  expect(performance.now() - start).toBeGreaterThanOrEqual(99)
})

test('what is held arrives later, all of it and in order, on connections that live on', async () => {
  const first = open()
  first.socket.write('a')
  await waitUntil('it works', () => first.received() === 'a')
  relay.hold()
  for (const text of ['b', 'c', 'd']) first.socket.write(text)
  const second = open()
  second.socket.write('x')
  await once(second.socket, 'connect')
  // Straight to the target and back: what is forwarded would have come by then.
  const passing = connect((echo.address() as AddressInfo).port, '127.0.0.1').on('error', () => {})
  clients.push(passing)
  passing.write('y')
  await once(passing, 'data')
  expect([first.received(), second.received()]).toEqual(['a', ''])
  relay.release()
  await waitUntil('all came back', () => first.received() === 'abcd' && second.received() === 'x')
})

test('a cut drops what is there and refuses what comes, until healed', async () => {
  const first = open()
  first.socket.write('a')
  await waitUntil('it works', () => first.received() === 'a')
  relay.cut()
  await first.closed
  await open().closed
  relay.heal()
  const third = open()
  third.socket.write('b')
  await waitUntil('it works again', () => third.received() !== '')
  expect(third.received()).toBe('b')
})

test('a blackhole accepts and forwards nothing', async () => {
  const first = open()
  first.socket.write('a')
  await waitUntil('it works', () => first.received() === 'a')
  relay.blackhole()
  const second = open()
  await once(second.socket, 'connect')
  first.socket.write('b')
  second.socket.write('c')
  relay.heal()
  await first.closed
  expect(first.received()).toBe('a')
  await second.closed
  expect(second.received()).toBe('')
})

test('the end of a connection is passed on', async () => {
  const { socket, received, closed } = open()
  socket.end('bye')
  await closed
  expect(received()).toBe('bye')
})
