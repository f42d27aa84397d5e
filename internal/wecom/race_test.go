//go:build race

package wecom

const raceEnabled = true
