// Package wecom speaks WeCom's protocol: it opens the callbacks that WeCom sends,
// makes plain JSON of what is inside, and calls the server API.
//
// # Guarantees
//
//   - Nothing comes out of [Callback.Open] or [Callback.Verify] that was not signed
//     with one of the configured tokens, encrypted with the key that belongs to it and
//     sealed for one of the configured receive ids. Everything else is one of
//     [ErrSignature], [ErrReceiver] and [ErrMalformed].
//   - No input, authentic or forged, makes a function of this package panic. Every
//     length is checked before it is used, documents are bounded in size, depth and
//     number of elements, and a document type declaration is refused unread.
//   - [Parse] never fails and never drops a field. A callback that cannot be
//     understood is still an event, of type wecom.unknown, that carries the text as it
//     came.
//   - No error and no log line of this package carries a token, a key, a secret or a
//     part of a message.
//   - A [Callback] may be used by any number of goroutines at once.
//
// # Signature and encryption
//
// A callback URL is configured with a Token and an EncodingAESKey ([Pair]). WeCom
// encrypts the message, puts it into an envelope (XML, or JSON for AI bots, hardware
// and some payments) and signs the encrypted text; the signature, a timestamp and a
// nonce travel in the query. The signature is the lower-case hexadecimal SHA-1 of
// token, timestamp, nonce and encrypted text, sorted bytewise and joined. Under the
// base64 lies AES-256-CBC, padded to 32 bytes, whose plaintext is 16 random bytes, a
// length in four bytes, the message, and the receive id:
// https://developer.work.weixin.qq.com/document/path/90968.
//
// The signature is checked before anything is decrypted, so that the padding tells
// nothing to somebody without the token. The corp id and agent id of the envelope are
// not covered by the signature and are never looked at. The age of the timestamp is
// not judged: the manual names no window, and a replayed callback is an event with an
// id that was seen before.
//
// Two pairs at once make a rotation possible: the signature tells which pair a
// callback belongs to, and pairs that share a token are told apart by their keys. A
// set of receive ids is needed because one URL can be addressed in two ways: the URL
// of a suite is checked with the provider's corp id and then called with the suite id;
// an AI bot has the empty id.
//
// # From plaintext to event
//
// [Parse] turns the plaintext into the data of an event and says what it is: its type,
// its id, when and where it happened, and whom it is about. Data holds what WeCom sent,
// under WeCom's names, so that the official manual describes it:
//
//   - The root is dropped, its children are the members. A leaf is a string, exactly as
//     sent; white space is trimmed where it stands outside CDATA. An element with
//     children is an object, an empty one is "".
//   - An attribute is a member "@name", text beside children or attributes is "#text".
//   - An element that repeats is an array. One that the manual says may repeat (the
//     table in repeat.go) is an array even when it stands alone, so that a consumer
//     meets one shape.
//   - JSON is passed through byte for byte.
//
// The predefined entities and numeric references are resolved; others cannot be
// declared and are refused.
//
// # Two ways to read
//
// Nearly every callback is a root with plain leaves. A scanner of a hundred lines
// (flat.go) reads those straight into JSON, some thirty times faster than encoding/xml
// and without garbage. It knows exactly what it knows: at the first thing out of the
// ordinary (an attribute, an entity, a comment, a nested or repeated element, a control
// character…) it gives up, and encoding/xml reads the document from the start
// (tree.go). Fuzz tests hold the two to the same bytes.
//
// # Calling the server API
//
// [Client] calls the API of one app. It fetches the access token, shares it among all
// calls, and fetches another when WeCom says that it no longer holds. What WeCom refuses
// is an [Error] with a [Class] that says what to do about it; what the network refused
// is a [TransportError] that says whether the request may have arrived.
package wecom
