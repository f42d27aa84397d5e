package bus

// Abandon breaks the connection of b as a crash of its process does: nothing is
// acknowledged or given back any more.
func (b *Bus) Abandon() {
	<-b.ready
	b.closing.Store(true)
	b.wire.close()
	b.nc.Close()
}

// ParseAck and what follows are what tests look at.
var (
	ParseAck      = parseAck
	ParsePlainAck = parsePlainAck
	Fixed         = fixed
)
