import { expect, it } from 'vitest'

import type { Finding } from '../mesh/doctor/finding.ts'
import { doctorLines, findingLines } from './doctor.ts'

const plain = (_tone: string, text: string): string => text

const finding = (server: string | null, more: Partial<Finding> = {}): Finding => ({
  severity: 'warn',
  check: 'table_without_key',
  server,
  object: 'public.t',
  what: 'has no primary key',
  fix: 'alter table public.t add primary key (...);',
  ...more,
})

it('what is the same on several servers is said once, with all of them', () => {
  const findings = [finding('n1'), finding('n1', { object: 'public.u' }), finding('n2'), finding('n3')]
  expect(findingLines(findings, plain)).toEqual([
    'warn   n1, n2, n3 public.t  has no primary key',
    '       fix: alter table public.t add primary key (...);',
    '',
    'warn   n1 public.u  has no primary key',
    '       fix: alter table public.t add primary key (...);',
    '',
  ])
  expect(doctorLines({ servers: [], findings }, plain).at(-1)).toBe('0 blocking, 2 to mind, 0 to know.')
})

it.each<Partial<Finding>>([{ severity: 'block' }, { what: 'is unlogged' }, { fix: null }, { object: null }])(
  'what differs stays apart: %j',
  (more) => {
    const lines = findingLines([finding('n1'), finding('n2', more)], plain)
    expect(lines.filter((line) => /^(BLOCK|warn )/.test(line))).toHaveLength(2)
  },
)

it('a finding about several servers together has no name before it', () => {
  expect(findingLines([finding(null, { object: null, fix: null })], plain)).toEqual([
    'warn   all  has no primary key',
    '',
  ])
})
