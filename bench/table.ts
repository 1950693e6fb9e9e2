import type { SideResult, WorkResult } from './summary.ts'

const HEAD = [
  'work',
  'side',
  'seconds (min-max)',
  'rate/s',
  'CPU s subscriber',
  'provider',
  'agent',
  'total',
  'agent peak MB',
]

/** The results as a Markdown table, which reads well on a terminal too. */
export function renderTable(results: readonly WorkResult[]): string {
  const rows = results.flatMap((result) => [
    [result.title, 'ours', ...cells(result.ours)],
    ['', 'native', ...cells(result.native)],
    [
      '',
      '**ours / native**',
      '',
      `**${result.ratio.toFixed(2)}x**`,
      '',
      '',
      '',
      `**${result.cpuRatio.toFixed(2)}x**`,
      '',
    ],
  ])
  const widths = HEAD.map((title, column) =>
    Math.max(title.length, ...rows.map((row) => row[column]!.length)),
  )
  const line = (row: readonly string[]): string =>
    `| ${row.map((cell, column) => (column < 2 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!))).join(' | ')} |`
  const rule = `| ${widths.map((width, column) => (column < 2 ? '-'.repeat(width) : `${'-'.repeat(width - 1)}:`)).join(' | ')} |`
  return [line(HEAD), rule, ...rows.map(line)].join('\n')
}

function cells({ seconds, rate, cpuSeconds, peakAgentBytes }: SideResult): string[] {
  const number = (value: number): string => value.toFixed(2)
  return [
    `${number(seconds.median)} (${number(seconds.min)}-${number(seconds.max)})`,
    rate.toFixed(0),
    number(cpuSeconds.subscriber),
    number(cpuSeconds.provider),
    peakAgentBytes === null ? '' : number(cpuSeconds.agent),
    number(cpuSeconds.total),
    peakAgentBytes === null ? '' : (peakAgentBytes / 1e6).toFixed(0),
  ]
}
