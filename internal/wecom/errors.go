package wecom

import "errors"

// What can be wrong with a callback. To a caller that faces the network they all mean
// the same: answer 403, say nothing more, keep nothing.
var (
	// ErrSignature reports that msg_signature is not the one that any of the configured
	// tokens gives.
	ErrSignature = errors.New("callback signature mismatch")

	// ErrReceiver reports a callback that was signed and encrypted for this URL, but
	// sealed for a receive id that is not configured.
	ErrReceiver = errors.New("callback sealed for another receive id")

	// ErrMalformed reports what a genuine server would not send. [Reason] tells which
	// check failed.
	ErrMalformed = errors.New("callback malformed")

	// ErrAESKey reports an EncodingAESKey that is not 43 letters and digits. The error
	// that wraps it says what is wrong, and never quotes the key.
	ErrAESKey = errors.New("illegal EncodingAESKey")
)

// malformed is one kind of [ErrMalformed], by the name that [Reason] gives it.
type malformed string

// The checks that a callback passes, in this order. The signature is checked after
// errEnvelope and before errBase64.
const (
	errQuery            malformed = "query"             // a parameter is missing or not percent-encoded
	errEnvelope         malformed = "envelope"          // neither XML nor JSON with one encrypted text
	errBase64           malformed = "base64"            // encrypted text outside the standard alphabet, or cut
	errCiphertextLength malformed = "ciphertext_length" // empty, or not whole blocks of 32 bytes
	errPadding          malformed = "padding"           // not PKCS#7 to 32 bytes; also a wrong key
	errShortPlaintext   malformed = "short_plaintext"   // no room for random bytes and length
	errMessageLength    malformed = "message_length"    // longer than what follows
)

func (e malformed) Error() string { return ErrMalformed.Error() + ": " + string(e) }

func (e malformed) Unwrap() error { return ErrMalformed }

// Reason names the check that err failed, for a metric label or a test report:
// signature, receive_id, query, envelope, base64, ciphertext_length, padding,
// short_plaintext, message_length or illegal_aes_key. It is "other" for an error that
// does not come from this package's callback side, and "" for nil. Do not tell it to
// whoever sent the callback.
func Reason(err error) string {
	var m malformed
	switch {
	case err == nil:
		return ""
	case errors.As(err, &m):
		return string(m)
	case errors.Is(err, ErrSignature):
		return "signature"
	case errors.Is(err, ErrReceiver):
		return "receive_id"
	case errors.Is(err, ErrAESKey):
		return "illegal_aes_key"
	}
	return "other"
}
