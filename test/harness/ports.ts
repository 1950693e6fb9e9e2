import { mkdirSync, openSync, closeSync, readFileSync, rmSync, writeSync, chmodSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { isPortFree } from '../../src/postgres/server/ports.ts'

/** Below the range from which systems take ports for outgoing connections. */
const FIRST_PORT = 20_000
const PORT_COUNT = 10_000

const reservations = join(tmpdir(), 'sterna-test-ports')

/**
 * Ports that are free now and that no other test process takes: each is reserved by a file until this process ends
 * (a file of a dead process does not count), so that a server can be stopped and started again on its port.
 */
export async function reservePorts(count: number): Promise<number[]> {
  mkdirSync(reservations, { recursive: true })
  try {
    chmodSync(reservations, 0o777)
  } catch {
    // It belongs to another user, who has done that.
  }
  const ports: number[] = []
  const start = Math.floor(Math.random() * PORT_COUNT)
  for (let i = 0; i < PORT_COUNT && ports.length < count; i++) {
    const port = FIRST_PORT + ((start + i) % PORT_COUNT)
    if (!reserve(port)) continue
    if (await isPortFree(port)) ports.push(port)
    else releasePort(port)
  }
  if (ports.length < count) throw new Error(`no ${count} free ports from ${FIRST_PORT}`)
  return ports
}

/**
 * A first port for a local cluster of so many nodes: it, its followers and the agents' ports 100 above are free and
 * reserved.
 */
export async function reserveClusterPorts(nodeCount: number): Promise<number> {
  for (let attempt = 0; attempt < 200; attempt++) {
    const first = FIRST_PORT + Math.floor(Math.random() * (PORT_COUNT - 200))
    const wanted = Array.from({ length: nodeCount }, (_, i) => [first + i, first + 100 + i]).flat()
    const reserved = wanted.filter(reserve)
    const free = await Promise.all(wanted.map(isPortFree))
    if (reserved.length === wanted.length && !free.includes(false)) return first
    reserved.forEach(releasePort)
  }
  throw new Error(`no free ports for a local cluster of ${nodeCount} nodes`)
}

/** Gives a reserved port back. */
export function releasePort(port: number): void {
  rmSync(join(reservations, String(port)), { force: true })
}

function reserve(port: number): boolean {
  const path = join(reservations, String(port))
  for (let attempt = 0; attempt < 2; attempt++) {
    try {
      const file = openSync(path, 'wx')
      writeSync(file, String(process.pid))
      closeSync(file)
      return true
    } catch {
      if (!isStale(path)) return false
      rmSync(path, { force: true })
    }
  }
  return false
}

function isStale(path: string): boolean {
  try {
    process.kill(Number(readFileSync(path, 'utf8')), 0)
    return false
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ESRCH'
  }
}
