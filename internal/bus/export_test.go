package bus

// Abandon breaks the connection of b as a crash of its process does: nothing is
// acknowledged or given back any more.
func (b *Bus) Abandon() {
	<-b.ready
	b.closing.Store(true)
	b.wire.close()
	b.nc.Close()
}

// ParseAck, Printable and DeniedSubject are what the tests of parsers need.
var (
	ParseAck      = parseAck
	ParsePlainAck = parsePlainAck
	Printable     = printable
	DeniedSubject = deniedSubject
)
