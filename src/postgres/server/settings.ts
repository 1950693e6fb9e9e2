/** What the settings of a local server depend on. */
export interface SettingsInput {
  readonly port: number
  /** Shown in process titles and logs: `sterna n1`. */
  readonly clusterName: string
  /** PostgreSQL's major version. */
  readonly major: number
  /** Nodes in the cluster; slots, senders and origins are scaled by it. */
  readonly nodeCount: number
  /** Wins over everything here; for tests, such as `{ fsync: 'off' }`. */
  readonly extra?: Readonly<Record<string, string>>
}

/** The settings of one server of a local cluster, by name. */
export function serverSettings(input: SettingsInput): Record<string, string> {
  const peers = String(Math.max(40, input.nodeCount * 10))
  return {
    port: String(input.port),
    listen_addresses: '127.0.0.1',
    // A socket path is limited to 104 bytes and would depend on where the directory lies: TCP only.
    unix_socket_directories: '',
    cluster_name: input.clusterName,
    wal_level: 'logical',
    track_commit_timestamp: 'on',
    max_connections: '200',
    max_wal_senders: peers,
    max_replication_slots: peers,
    ...(input.major >= 18 ? { max_active_replication_origins: peers } : {}),
    max_worker_processes: '32',
    password_encryption: 'scram-sha-256',
    logging_collector: 'off',
    log_destination: 'stderr',
    log_line_prefix: '%m [%p] %q%u@%d %a ',
    ...input.extra,
  }
}

/** The text of a configuration file with these settings. */
export function renderSettings(settings: Readonly<Record<string, string>>): string {
  const lines = Object.entries(settings).map(([name, value]) => `${name} = '${value.replaceAll("'", "''")}'`)
  return [
    '# Written by Sterna when it starts this server. Change settings with ALTER SYSTEM.',
    ...lines,
    '',
  ].join('\n')
}
