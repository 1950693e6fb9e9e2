import { isIP } from 'node:net'

/** Where the agent's HTTP server listens. Port 0 lets the system choose. */
export interface HttpAddress {
  readonly host: string
  readonly port: number
}

/**
 * Parses `HOST:PORT`, `[IPV6]:PORT`, or a bare port, which means loopback. Undefined when it is none of these. An empty
 * host is refused: whoever wants all interfaces says 0.0.0.0.
 */
export function parseHttpAddress(text: string): HttpAddress | undefined {
  const match = /^(?:(?:\[([0-9a-fA-F:.]+)\]|([\w.-]+)):)?(\d{1,5})$/.exec(text.trim())
  if (!match) return undefined
  const [, ipv6, name, digits] = match
  const port = Number(digits)
  if (port > 65_535 || (ipv6 !== undefined && isIP(ipv6) !== 6)) return undefined
  return { host: ipv6 ?? name ?? '127.0.0.1', port }
}

/** `HOST:PORT`, with brackets around an IPv6 host. */
export function formatHttpAddress({ host, port }: HttpAddress): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`
}

/** Whether only processes of this machine reach the host: 127.0.0.0/8, ::1 or localhost. */
export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || (isIP(host) === 4 && host.startsWith('127.'))
}
