// Package e2e holds the tests of the whole: the real programs as processes of their own,
// configured by environment variables alone, with the simulator as WeCom.
//
// The embedded server of a gateway listens on 127.0.0.1:4222, as users have it, so that
// nothing else may listen there while these tests run.
package e2e
