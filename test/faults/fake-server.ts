import { once } from 'node:events'
import { createServer, type AddressInfo, type Socket } from 'node:net'

/** Something that listens where a server should. */
export interface FakeServer {
  readonly port: number
  close(): Promise<void>
}

/** Listens on 127.0.0.1 and leaves each connection to `serve`. */
export async function startFakeServer(serve: (socket: Socket) => void): Promise<FakeServer> {
  const open = new Set<Socket>()
  const server = createServer((socket) => {
    open.add(socket)
    socket.on('error', () => {})
    socket.on('close', () => open.delete(socket))
    serve(socket)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: (server.address() as AddressInfo).port,
    async close() {
      for (const socket of open) socket.destroy()
      await new Promise<void>((resolve) => server.close(() => resolve()))
    },
  }
}

const SSL_REQUEST = 80_877_103

/** A server of some version that lets everybody in, and answers each query with an error. */
export function startFakePostgres(version: string): Promise<FakeServer> {
  return startFakeServer((socket) => {
    let started = false
    socket.on('data', (chunk) => {
      if (started) {
        socket.write(Buffer.concat([frame('E', 'SERROR\0VERROR\0CXX000\0Mfake\0\0'), frame('Z', 'I')]))
        return
      }
      if (chunk.readInt32BE(4) === SSL_REQUEST) {
        socket.write('N')
        return
      }
      started = true
      socket.write(
        Buffer.concat([
          frame('R', '\0\0\0\0'),
          frame('S', `server_version\0${version}\0`),
          frame('K', '\0\0\0\x01\0\0\0\x02'),
          frame('Z', 'I'),
        ]),
      )
    })
  })
}

function frame(type: string, body: string): Buffer {
  const content = Buffer.from(body, 'latin1')
  const out = Buffer.alloc(5 + content.length)
  out.write(type, 'latin1')
  out.writeInt32BE(4 + content.length, 1)
  content.copy(out, 5)
  return out
}
