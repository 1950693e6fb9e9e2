/** Sterna's own version; equal to the one in package.json (a test holds them together). */
export const STERNA_VERSION = '0.1.0'
