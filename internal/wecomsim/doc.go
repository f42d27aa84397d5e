// Package wecomsim is a WeCom to develop against: it plays both halves of the platform that a
// self-built application talks to.
//
// The API half answers /cgi-bin/gettoken, message/send, get_api_domain_ip and getcallbackip with
// the checks, error codes, error texts and headers of qyapi.weixin.qq.com. What a user would see
// on the phone can be read from GET /sim/inbox/{user}.
//
// The callback half seals, signs and delivers what a user says to the application's callback URL,
// hangs up after five seconds and tries again three times, a second apart.
//
// A chat page at / shows both, live. It needs nothing from outside the binary.
//
// # Members
//
// Every well-formed userid ([0-9A-Za-z_@.-], at most 64, the first a letter or digit, case does
// not matter) is a member, every member is in every department (a positive number) and has every
// tag (a positive number). These userids, as recipients of message/send, play trouble:
//
//	errcode-45009   the call ends with that errcode, nothing is delivered (any number: errcode--1)
//	timeout         nothing is delivered and nothing is answered
//	timeout-after   delivered, then nothing is answered
//	http-502        that HTTP status (400 to 599) with an HTML page, nothing is delivered
//	reset           the connection is cut, nothing is delivered
//	reset-after     delivered, then the connection is cut
//	garbled         delivered, then a 200 whose body is not JSON
//	slow-1500       delivered, answered after so many milliseconds (at most 600000)
//	not-found       not a member: listed in invaliduser (also not-found-1, not-found-x, ...)
//	unlicensed      a member without an API licence: listed in unlicenseduser
//
// A media_id that begins with "expired" or "invalid" is answered 40007, any other well-formed one
// is taken.
//
// # Faults
//
// PUT /sim/faults makes the API misbehave for everybody; see [Faults].
//
// # What it does not know
//
// Where the official manual is silent, the package takes the reading that is harder on the caller,
// or offers a switch, and says so beside the code. The manual's pages are cited as in
// developer.work.weixin.qq.com/document/path/90236.
package wecomsim
