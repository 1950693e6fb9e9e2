import { readdir, readFile, readlink } from 'node:fs/promises'
import { createServer } from 'node:net'
import { SternaError } from '../../core/errors.ts'

/** Whether a server could listen on this port of 127.0.0.1 now. */
export async function isPortFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer()
    server.once('error', () => resolve(false))
    server.listen({ port, host: '127.0.0.1', exclusive: true }, () => server.close(() => resolve(true)))
  })
}

/**
 * Makes sure that all these ports are free.
 * @throws PORT_BUSY for the first that is not, with the program that holds it where the system tells
 */
export async function requirePortsFree(ports: readonly number[]): Promise<void> {
  for (const port of ports) {
    if (await isPortFree(port)) continue
    const holder = await portHolder(port)
    throw new SternaError('PORT_BUSY', { port, by: holder ? ` by ${holder}` : '' })
  }
}

/** Who listens on a TCP port, as `postgres (pid 123)`; undefined when that cannot be seen. Linux only. */
export async function portHolder(port: number): Promise<string | undefined> {
  const inodes = new Set<string>()
  for (const table of ['/proc/net/tcp', '/proc/net/tcp6']) {
    const text = await readFile(table, 'utf8').catch(() => '')
    for (const inode of listeningInodes(text, port)) inodes.add(`socket:[${inode}]`)
  }
  if (inodes.size === 0) return undefined
  for (const pid of await readdir('/proc').catch(() => [])) {
    if (!/^\d+$/.test(pid)) continue
    for (const fd of await readdir(`/proc/${pid}/fd`).catch(() => [])) {
      const target = await readlink(`/proc/${pid}/fd/${fd}`).catch(() => '')
      if (!inodes.has(target)) continue
      const name = await readFile(`/proc/${pid}/comm`, 'utf8').catch(() => 'a program')
      return `${name.trim()} (pid ${pid})`
    }
  }
  return undefined
}

/** The socket inodes that listen on `port` in the text of /proc/net/tcp. */
export function listeningInodes(table: string, port: number): string[] {
  const wanted = port.toString(16).toUpperCase().padStart(4, '0')
  const found: string[] = []
  for (const line of table.split('\n').slice(1)) {
    const fields = line.trim().split(/\s+/)
    const isListening = fields[3] === '0A'
    if (isListening && fields[1]?.endsWith(`:${wanted}`) && fields[9]) found.push(fields[9])
  }
  return found
}
