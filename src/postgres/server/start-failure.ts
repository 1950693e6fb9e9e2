/** Why a start failed, read from what the server wrote to its log since then. */
export type StartFailure =
  /** Processes of a killed server still hold its shared memory: they end by themselves, so try again. */
  | { readonly tag: 'memory-in-use' }
  /** postmaster.pid names a process that exists. */
  | { readonly tag: 'lock-file' }
  | { readonly tag: 'port-busy' }
  | { readonly tag: 'other'; readonly reason: string }

/**
 * Classifies the log text of a failed start. Settings keep lc_messages at C, so the texts are stable.
 * Source: PostgreSQL, src/backend/port/sysv_shmem.c, src/backend/utils/init/miscinit.c, src/backend/libpq/pqcomm.c.
 */
export function classifyStartFailure(log: string): StartFailure {
  if (/pre-existing shared memory block .* is still in use/.test(log)) return { tag: 'memory-in-use' }
  if (/lock file "postmaster\.pid" already exists/.test(log)) return { tag: 'lock-file' }
  if (/could not bind .* address .*: Address already in use/.test(log)) return { tag: 'port-busy' }
  const telling = log.split('\n').filter((line) => /\b(FATAL|PANIC|ERROR):/.test(line))
  const last = (telling.length > 0 ? telling : log.trim().split('\n')).at(-1) ?? ''
  return {
    tag: 'other',
    reason: last.replace(/^.*?\b(FATAL|PANIC|ERROR):\s*/, '') || 'no message in the log',
  }
}
