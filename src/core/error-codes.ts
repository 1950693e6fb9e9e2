import type { ExitCode } from './errors.ts'

/** One entry of the error reference. `{name}` is filled from the error's facts. */
export interface ErrorEntry {
  /** What happened, one sentence: what is wrong and where. */
  readonly message: string
  /** Why it happens. */
  readonly cause: string
  /** What to do; a command where there is one. */
  readonly action: string
  readonly retry: boolean
  readonly exitCode: ExitCode
}

/**
 * Every operational error of Sterna. docs/errors.md is generated from here (`npm run docs`).
 * Exit codes: 1 failed, 2 usage, 3 precondition, 4 unreachable, 5 partial.
 */
export const ERROR_CODES = {
  INVALID_VALUE: {
    message: '{what}: "{value}" is not valid; expected {expected}',
    cause: 'An option, a setting or a stored value does not have the form it must have.',
    action: 'Correct the value: {expected}.',
    retry: false,
    exitCode: 2,
  },
  DSN_INVALID: {
    message: 'connection string: {reason}',
    cause:
      'A connection string is neither a postgresql:// URI nor libpq keyword=value text, or has an unknown setting.',
    action:
      'Use postgresql://user:password@host:port/database?sslmode=... or "host=... port=... dbname=... user=...".',
    retry: false,
    exitCode: 2,
  },
  SERVER_UNREACHABLE: {
    message: 'cannot reach PostgreSQL at {address}: {reason}',
    cause: 'The host does not resolve, refuses the connection, or does not answer in time.',
    action:
      'Check that the server runs, that host and port are right, and that a firewall lets this host through.',
    retry: true,
    exitCode: 4,
  },
  SERVER_NOT_READY: {
    message: 'PostgreSQL at {address} takes no connections now: {reason}',
    cause: 'The server is starting up, recovering after a crash, or shutting down.',
    action: 'Wait: Sterna tries again. If it lasts, look at the server log.',
    retry: true,
    exitCode: 4,
  },
  SERVER_TOO_OLD: {
    message: 'the server at {address} is PostgreSQL {version}, which is too old',
    cause: 'Sterna needs PostgreSQL 15 or later.',
    action: 'Upgrade that server (pg_upgrade), or use another one.',
    retry: true,
    exitCode: 3,
  },
  CONNECTIONS_EXHAUSTED: {
    message: 'the server at {address} has no free connection: {reason}',
    cause: 'max_connections is reached there, or the connection limit of the role or the database.',
    action:
      'Close sessions that nobody needs, or raise the limit (alter system set max_connections = 200) and restart the server.',
    retry: true,
    exitCode: 4,
  },
  CONNECTION_LOST: {
    message: 'connection to {address} was lost: {reason}',
    cause: 'The server, the network or an administrator ended the connection.',
    action: 'Nothing, if it comes back by itself: Sterna reconnects. Otherwise look at the server log.',
    retry: true,
    exitCode: 4,
  },
  AUTH_FAILED: {
    message: 'PostgreSQL at {address} refused the login of "{user}": {reason}',
    cause: 'Wrong password, unknown role, or no matching line in pg_hba.conf.',
    action:
      'Correct the user and password in the connection string, or add a line to pg_hba.conf and reload.',
    retry: true,
    exitCode: 4,
  },
  DATABASE_MISSING: {
    message: 'database "{database}" does not exist on {address}',
    cause: 'The server runs, but has no database of that name.',
    action: 'Create it there (create database "{database}"), or correct the connection string.',
    retry: true,
    exitCode: 3,
  },
  TLS_FAILED: {
    message: 'TLS with {address} failed: {reason}',
    cause:
      'sslmode asks for TLS or for a verified certificate, and the server does not offer it or shows another certificate.',
    action:
      'Turn on ssl at the server, give sslrootcert, or choose a weaker sslmode if the network is trusted.',
    retry: true,
    exitCode: 4,
  },
  PROTOCOL_VIOLATION: {
    message: 'what {address} sent is not the PostgreSQL protocol: {reason}',
    cause:
      'Something other than a PostgreSQL server answers at that address, or the stream was damaged on its way.',
    action: 'Check host and port. If a proxy stands between, it must pass the protocol through unchanged.',
    retry: true,
    exitCode: 4,
  },
  STATEMENT_FAILED: {
    message: 'PostgreSQL at {address} answered {sqlstate}: {reason}',
    cause: 'A statement was refused by the server.',
    action: 'See the message and the SQLSTATE; the server log has the statement.',
    retry: false,
    exitCode: 1,
  },
  PG_BINARIES_MISSING: {
    message: 'PostgreSQL {wanted} cannot be used: {reason}',
    cause:
      'No PostgreSQL programs (postgres, initdb) of the wanted version were found where Sterna looks, or they do not run.',
    action:
      'Install that version, or say --pg with another major version or with the directory of its programs (pg_config --bindir).',
    retry: false,
    exitCode: 3,
  },
  SERVER_USER_MISSING: {
    message: 'PostgreSQL refuses to run as root, and no other user could be created for it: {reason}',
    cause: 'Sterna was started by root on a machine without a user "postgres".',
    action: 'Create the user (useradd --system sterna), or start Sterna as an ordinary user.',
    retry: false,
    exitCode: 3,
  },
  INITDB_FAILED: {
    message: 'initdb could not create {directory}: {reason}',
    cause: 'The PostgreSQL program that creates a data directory failed.',
    action: 'See the reason; then run the same command again: it continues.',
    retry: false,
    exitCode: 1,
  },
  SERVER_START_FAILED: {
    message: 'the server of {node} did not start: {reason}',
    cause: 'The postgres process ended or was not ready in time; its last log lines are the reason.',
    action: 'Read {log}, remove the cause, and run the same command again.',
    retry: true,
    exitCode: 1,
  },
  PORT_BUSY: {
    message: 'port {port} on 127.0.0.1 is in use{by}',
    cause: 'Another program listens on a port that a server or an agent of the local cluster needs.',
    action: 'Stop that program, or choose other ports with --port (for a cluster that is created).',
    retry: true,
    exitCode: 3,
  },
  DISK_FULL: {
    message: 'not enough room on the file system of {directory}: {free} MB free, {needed} MB needed',
    cause: 'A new local cluster needs room for its data directories and their write-ahead log.',
    action: 'Free some room, or choose another place with --dir.',
    retry: true,
    exitCode: 3,
  },
  NODE_NAME_TWICE: {
    message: 'the node name "{node}" is given twice',
    cause: 'Every node of a cluster has a name of its own.',
    action: 'Give each --node another name.',
    retry: false,
    exitCode: 2,
  },
  SAME_DATABASE_TWICE: {
    message: 'nodes "{first}" and "{second}" are one and the same database',
    cause: 'Two connection strings, perhaps spelt differently, lead to one database of one server.',
    action: 'Correct the connection string of one of them. Two databases of one server can be two nodes.',
    retry: false,
    exitCode: 3,
  },
  NODE_BELONGS_ELSEWHERE: {
    message:
      'the database given for node "{node}" is already node "{existingNode}" of cluster "{existingCluster}"',
    cause: 'It was made a node earlier, under another name or of another cluster.',
    action:
      'Use that name and cluster, or take it out first: sterna node drop {existingNode} --dsn <its connection string>.',
    retry: false,
    exitCode: 3,
  },
  MESH_NOT_READY: {
    message: 'after {seconds} s these subscriptions do not replicate: {missing}',
    cause: 'An agent does not run, a server cannot be reached, or a subscription has an error.',
    action: 'See the reason with: sterna status. Look at the logs of the agents.',
    retry: true,
    exitCode: 5,
  },
  DATA_DIFFERS: {
    message: 'the servers do not hold the same rows in {tables}',
    cause: 'Existing rows are not copied yet: a mesh of databases that differ stays different.',
    action: 'Make the data equal first (pg_dump --data-only | psql), or say --accept-different-data.',
    retry: false,
    exitCode: 3,
  },
  SCHEMA_EDITED: {
    message: 'schema sterna at {address} was made by another build of Sterna: migration {migration} differs',
    cause: 'The database was set up by a development version, whose migrations were changed afterwards.',
    action:
      'Make the cluster anew (for a local one: sterna down --destroy, then sterna up), or use the build that made it.',
    retry: false,
    exitCode: 3,
  },
  SCHEMA_NEWER: {
    message: 'schema sterna at {address} has version {version}, and this Sterna knows versions up to {known}',
    cause: 'A newer release of Sterna has set this database up.',
    action: 'Use that release, or a later one.',
    retry: false,
    exitCode: 3,
  },
  SCHEMA_DIFFERS: {
    message: 'the tables of the nodes are not the same: {differences}',
    cause: 'Rows can only be applied where table, columns, types and key are the same.',
    action: 'Bring the tables to one form on all nodes; sterna doctor lists every difference.',
    retry: false,
    exitCode: 3,
  },
  CHECKS_FAILED: {
    message: '{count} finding(s) block: {findings}',
    cause: 'A server is not set up for replication yet. Nothing was changed.',
    action: 'Run the command that stands beside each finding, then try again.',
    retry: false,
    exitCode: 3,
  },
  CLUSTER_NOT_FOUND: {
    message: 'no cluster found: {reason}',
    cause: 'The command needs to know which servers to talk to.',
    action:
      'Start a local cluster with: sterna up. Or say where yours is: --dir DIRECTORY, --cluster FILE or --dsn DSN.',
    retry: false,
    exitCode: 3,
  },
  CLUSTER_FILE_INVALID: {
    message: 'cluster file {file}: {reason}',
    cause: 'The file is not JSON of the form {"name": ..., "nodes": [{"name": ..., "dsn": ...}]}.',
    action: 'Correct the file, or write it anew with: sterna cluster create.',
    retry: false,
    exitCode: 2,
  },
  NODE_UNKNOWN: {
    message: 'there is no node "{node}" here; the nodes are {nodes}',
    cause: 'The name is not one of the cluster, or the command looks at another cluster than you think.',
    action: 'Use one of those names, or point --dir, --cluster or --dsn elsewhere.',
    retry: false,
    exitCode: 2,
  },
  CONFIG_MISSING: {
    message: 'configuration: "{key}" is missing',
    cause:
      'A setting without a default is given neither on the command line, nor in the environment, nor in the file.',
    action: 'Give {option}, set {variable}, or put "{key}" into the file that --config names.',
    retry: false,
    exitCode: 2,
  },
  CONFIG_INVALID: {
    message: 'configuration: "{key}" from {source}: {reason}',
    cause: 'A setting of the agent has a value that it cannot have, or a name that no setting has.',
    action: 'Correct "{key}" in {source}; docs/agent.md lists the settings.',
    retry: false,
    exitCode: 2,
  },
  CONFIG_UNREADABLE: {
    message: 'cannot read the configuration file {path}: {reason}',
    cause: 'The file is missing, may not be read by this user, or is not a JSON object.',
    action: 'Correct the path, the permissions, or the JSON.',
    retry: false,
    exitCode: 2,
  },
  AGENT_HTTP_PORT_BUSY: {
    message: "the agent's HTTP address {address} is already in use",
    cause:
      'Another process listens there: often an agent that still runs, or the agent of another node on this host.',
    action: 'Stop the other process, or choose another address with --http (--http off for none).',
    retry: false,
    exitCode: 3,
  },
  AGENT_HTTP_FAILED: {
    message: "the agent's HTTP server cannot listen on {address}: {reason}",
    cause: 'The address is not one of this host, does not resolve, or needs more rights.',
    action: 'Choose another address with --http, such as 127.0.0.1:7101 (--http off for none).',
    retry: false,
    exitCode: 3,
  },
  PID_FILE_FAILED: {
    message: 'cannot write the pid file {path}: {reason}',
    cause: 'The directory is missing or may not be written by this user, or the disk is full.',
    action: 'Create the directory, correct its permissions, or choose another place with --pid-file.',
    retry: false,
    exitCode: 3,
  },
  CLUSTER_DIR_UNUSABLE: {
    message: '{directory} cannot hold a local cluster: {reason}',
    cause: 'The directory is not one of Sterna, or this user cannot use it.',
    action: 'Correct what the message says, or choose another place with --dir.',
    retry: false,
    exitCode: 3,
  },
  CLUSTER_DIFFERS: {
    message: 'the cluster in {directory} has {existing}, but {asked} was asked for',
    cause:
      'A local cluster keeps the number of nodes, the ports and the PostgreSQL version it was created with.',
    action:
      'Leave that option out to go on with the existing cluster, take another --dir, or remove it with its data: sterna down --destroy.',
    retry: false,
    exitCode: 3,
  },
  CLUSTER_BUSY: {
    message: 'the cluster in {directory} is {state} right now by process {pid}',
    cause: 'Another "sterna up" or "sterna down" works on the same directory.',
    action: 'Wait until it has finished, then try again.',
    retry: true,
    exitCode: 3,
  },
  AGENT_START_FAILED: {
    message: 'the agent of {node} did not start: {reason}',
    cause: 'The agent process ended, or did not answer on its HTTP port in time.',
    action: 'Read {log}, remove the cause, and run the same command again.',
    retry: true,
    exitCode: 1,
  },
  SUPERVISOR_FAILED: {
    message: 'the supervisor in the background {reason}',
    cause: 'The process that runs servers and agents ended, or did not do in time what it was asked for.',
    action: 'Read {log}, remove the cause, and run the same command again.',
    retry: true,
    exitCode: 1,
  },
  CONFIRMATION_NEEDED: {
    message: '{what} needs a confirmation, and there is no terminal to ask on',
    cause: 'What cannot be undone is not done without a yes.',
    action: 'Add --yes if that is what you want.',
    retry: false,
    exitCode: 2,
  },
  TABLE_MISSING: {
    message: 'table {table} is replicated from {provider} but does not exist on {node}',
    cause:
      'A change arrived for a table that this node does not have. Nothing is skipped: the subscription waits.',
    action:
      'Create {table} on {node} with the same columns and key (set sterna.ddl_replication = off first). Applying resumes by itself.',
    retry: true,
    exitCode: 3,
  },
  COLUMN_MISSING: {
    message: 'column {column} of table {table} is replicated from {provider} but {problem} on {node}',
    cause:
      'The schemas differ: the column is missing on this node, or is generated here and not at the provider.',
    action:
      'Add column {column} to {table} on {node} as an ordinary column (set sterna.ddl_replication = off first). Applying resumes by itself.',
    retry: true,
    exitCode: 3,
  },
  KEY_DIFFERS: {
    message: 'table {table} has key ({local}) on {node} and ({remote}) on {provider}',
    cause: 'Rows cannot be matched: the primary key or replica identity differs between the nodes.',
    action:
      'Give {table} the same primary key on both nodes (set sterna.ddl_replication = off first). Applying resumes by itself.',
    retry: true,
    exitCode: 3,
  },
  TYPE_DIFFERS: {
    message:
      '{operation} on {table} could not be applied on {node}: {reason} ({sqlstate}); types differ: {columns}',
    cause: 'A column has another type on this node, and a value from the provider does not fit into it.',
    action:
      'Give the column the same type on both nodes (set sterna.ddl_replication = off first). Applying resumes by itself.',
    retry: true,
    exitCode: 3,
  },
  APPLY_INTERRUPTED: {
    message: 'applying {operation} on {table} was interrupted on {node}: {reason} ({sqlstate})',
    cause:
      'A deadlock with a local transaction, an administrator, or a shutdown ended the transaction. All of it was rolled back.',
    action: 'Nothing: it is repeated by itself. If it happens often, see what locks {table}.',
    retry: true,
    exitCode: 1,
  },
  SERVER_OUT_OF_RESOURCES: {
    message: 'the server of {node} cannot go on with {operation} on {table}: {reason} ({sqlstate})',
    cause: 'Its disk is full, or memory or another resource is used up. The transaction was rolled back.',
    action:
      'Free room on the disk of {node} (or what else the reason names). It is retried with the same data until it succeeds.',
    retry: true,
    exitCode: 1,
  },
  STILL_IN_USE: {
    message: 'an earlier session of {subscription} has not ended yet at {address}: {reason}',
    cause:
      'The connection broke, and that server has not noticed yet; its session keeps the slot or the origin.',
    action:
      'Wait: it ends by itself, after wal_sender_timeout at the latest, or when the lock it waits for is released.',
    retry: true,
    exitCode: 4,
  },
  APPLY_FAILED: {
    message: '{operation} on {table} could not be applied on {node}: {reason} ({sqlstate})',
    cause:
      'PostgreSQL refused a change from the provider on this node, to a table without a key or at the commit, so that it cannot be parked by itself. The whole transaction was rolled back; nothing is skipped.',
    action:
      'Remove the cause on this node (see the reason). It is retried with the same data until it succeeds.',
    retry: true,
    exitCode: 1,
  },
  EXCEPTION_STOPPED: {
    message:
      '{operation} on {table} was refused: {reason} ({sqlstate}); the subscription has disabled itself',
    cause:
      'PostgreSQL refused a change from the provider, and on_exception of the subscription is stop. The whole transaction was rolled back; the subscription keeps its place.',
    action:
      "Remove the cause on this node (see the reason), then: select sterna.sub_enable('...'). Or let such changes wait: select sterna.sub_set_on_exception('...', 'park').",
    retry: false,
    exitCode: 1,
  },
  CODE_REFUSED: {
    message: 'code of an ordinary role would run with the rights of Sterna on {node}: {reason}',
    cause:
      "Triggers, constraints and other code of a table are executed on the other nodes with the rights of the table's owner. Deferred triggers, cursors and prepared statements would get around that, as would a partition of another owner.",
    action:
      'On {node}: alter the trigger so that it is not deferrable or fires only at its origin (alter table ... enable trigger ...), or give the table to a superuser whose code it may be. Applying resumes by itself.',
    retry: true,
    exitCode: 3,
  },
  DDL_FAILED: {
    message: 'a replicated schema change could not be applied on {node}: {reason} ({sqlstate})',
    cause: 'A CREATE, ALTER or DROP of another node does not fit the schema of this node.',
    action:
      'Bring the schema here to the state the statement expects (set sterna.ddl_replication = off first). It is retried until it succeeds.',
    retry: true,
    exitCode: 1,
  },
  PROVIDER_NOT_A_NODE: {
    message: 'the database at {address} is not a Sterna node',
    cause: 'Schema sterna is missing there, or node_create has not been called.',
    action: 'Run "sterna cluster create", or select sterna.node_create(...) there.',
    retry: true,
    exitCode: 3,
  },
  SUBSCRIPTION_TO_SELF: {
    message: 'subscription {subscription} leads back to this node ({node})',
    cause: 'Its provider_dsn points at the database that the subscription is in.',
    action: 'Drop it (sterna sub drop {subscription}) and create it with the DSN of another node.',
    retry: false,
    exitCode: 3,
  },
  NODE_IDENTITY_CLASH: {
    message:
      'the provider of {subscription} calls itself {provider} with id {id}, but known here is node {known}',
    cause: 'Two nodes of one cluster have the same name or id.',
    action:
      'Drop one node and create it again with another name, or with another id in its info: \'{"node_id": 7}\'.',
    retry: true,
    exitCode: 3,
  },
  PROVIDER_REPLACED: {
    message: 'the server behind subscription {subscription} is not the one it was made with',
    cause:
      'The provider was replaced by another server, a copy, or a restored backup: its positions mean something else.',
    action: 'If that was intended, drop the subscription and create it again after making the data equal.',
    retry: true,
    exitCode: 3,
  },
  PROVIDER_REWOUND: {
    message:
      'the provider of {subscription} is at WAL position {current}, before {applied}, which was applied here already',
    cause:
      'The provider was restored from a backup or replaced by a standby that was behind; new writes there would be skipped.',
    action: 'Stop writing there. Drop the subscription and create it again after making the data equal.',
    retry: true,
    exitCode: 3,
  },
  REPLICATION_SET_MISSING: {
    message: 'the provider of {subscription} has no replication set {sets}',
    cause: 'The subscription asks for a set that does not exist at the provider.',
    action: 'Create it there (sterna repset create), or take it off the subscription.',
    retry: true,
    exitCode: 3,
  },
  SLOT_LOST: {
    message: 'replication slot {slot} of subscription {subscription} is gone at the provider',
    cause:
      'It was dropped by hand, or invalidated because it held more WAL than max_slot_wal_keep_size allows. Changes are missing.',
    action: 'Make the data equal, then drop the subscription and create it again.',
    retry: true,
    exitCode: 3,
  },
  SLOTS_EXHAUSTED: {
    message: 'the provider at {address} has no free replication slot or walsender: {reason}',
    cause: 'max_replication_slots or max_wal_senders is reached there.',
    action:
      'Raise both there (alter system set max_replication_slots = 40; alter system set max_wal_senders = 40) and restart it, or drop slots that nobody uses.',
    retry: true,
    exitCode: 3,
  },
  ORIGINS_EXHAUSTED: {
    message: 'the server at {address} has no free replication origin: {reason}',
    cause:
      'max_active_replication_origins (18) or max_replication_slots (15 to 17) is reached on the subscriber.',
    action:
      'Raise it (alter system set max_active_replication_origins = 40; before 18: max_replication_slots) and restart the server.',
    retry: true,
    exitCode: 3,
  },
  COMMIT_TIMESTAMPS_OFF: {
    message: 'the server at {address} has track_commit_timestamp=off',
    cause: 'Which of two writes to a row is newer is told by their commit timestamps.',
    action: 'alter system set track_commit_timestamp = on; then restart the server.',
    retry: true,
    exitCode: 3,
  },
  WAL_LEVEL_TOO_LOW: {
    message: 'the server at {address} has wal_level={walLevel}',
    cause: 'Changes can only be decoded from the WAL with wal_level=logical.',
    action: 'alter system set wal_level = logical; then restart the server.',
    retry: true,
    exitCode: 3,
  },
  PRIVILEGE_MISSING: {
    message: 'role "{user}" at {address} lacks a privilege: {reason}',
    cause:
      'Reading from a node needs REPLICATION; applying needs the replication origin functions, session_replication_role and the tables of schema sterna.',
    action: '{remedy}',
    retry: true,
    exitCode: 3,
  },
  NODE_NAME_MISMATCH: {
    message: 'this agent is for node {expected}, but the database at {address} is node {actual}',
    cause: 'The agent was started with the DSN of another node.',
    action: 'Start it with --node {actual}, or with the DSN of {expected}.',
    retry: false,
    exitCode: 3,
  },
  AGENT_NOT_RUNNING: {
    message: 'the agent of this node is not running',
    cause: 'The agent has not written its state for 15 seconds: it was stopped, or cannot reach its server.',
    action: 'Start it: sterna agent --node {node} --dsn ...; its log says why it ended.',
    retry: true,
    exitCode: 3,
  },
  AGENT_ALREADY_RUNNING: {
    message: 'another agent already serves node {node} at {address}',
    cause: 'One agent per node: a second one would apply the same changes.',
    action:
      'Stop the other agent (its pid is in sterna.agent_state), or wait: this one takes over when it is gone.',
    retry: true,
    exitCode: 3,
  },
  USAGE: {
    message: '{reason}',
    cause: 'The command line has an unknown command or option, or an argument is missing.',
    action: 'See: {help}',
    retry: false,
    exitCode: 2,
  },
  REFUSED: {
    message: 'node {node}: {reason}',
    cause:
      'A function of schema sterna does not do what it is asked to, because something stands in its way.',
    action: '{remedy}',
    retry: false,
    exitCode: 3,
  },
  NOT_A_NODE: {
    message: 'the database at {address} is no node of a cluster',
    cause: 'Schema sterna is not there, or node_create has not been called.',
    action: 'Make servers a cluster with: sterna cluster create. Or point the command at another server.',
    retry: false,
    exitCode: 3,
  },
} as const satisfies Record<string, ErrorEntry>

export type ErrorCode = keyof typeof ERROR_CODES
