package ops

import (
	"context"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

const (
	flushAfter = 100 * time.Millisecond
	flushSize  = 32 << 10
)

// Log returns a logger that writes to w: text when w is a terminal, else one JSON object
// a line. Call flush before the program ends.
//
// A program writes a line for every event, and a write to the kernel for each would cost
// more than the event's decryption. JSON lines are therefore collected and written
// together: at most 100 ms late, and at once when one of them is a warning or worse. A
// program that is killed takes the lines of its last tenth of a second along; the events
// themselves are stored by then.
func Log(w io.Writer, level slog.Level) (log *slog.Logger, flush func()) {
	o := &slog.HandlerOptions{Level: level}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return slog.New(slog.NewTextHandler(w, o)), func() {}
	}
	b := &batch{w: w}
	b.timer = time.AfterFunc(time.Hour, b.flush)
	b.timer.Stop()
	return slog.New(&lines{prompt{slog.NewJSONHandler(b, o), b}}), b.flush
}

// batch is a writer that collects lines.
type batch struct {
	w     io.Writer
	timer *time.Timer

	mu    sync.Mutex
	lines []byte
}

func (b *batch) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.lines) == 0 {
		b.timer.Reset(flushAfter)
	}
	if b.lines = append(b.lines, line...); len(b.lines) >= flushSize {
		b.write()
	}
	return len(line), nil
}

func (b *batch) flush() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.write()
}

func (b *batch) write() {
	if len(b.lines) > 0 {
		_, _ = b.w.Write(b.lines) // where would one complain?
		b.lines = b.lines[:0]
	}
}

// A Liner is the handler of a [Log] that writes JSON. It takes lines that their caller
// wrote: for the one line that every event costs, where slog's own way showed in the
// benchmark.
type Liner interface {
	slog.Handler
	// Line writes one line of level info: a JSON object with time, level, msg and the
	// rest, and a line break. It keeps nothing of it.
	Line(line []byte)
}

// lines is the handler that Log returns. Those derived from it, whose lines have more in
// them, take none.
type lines struct{ prompt }

func (h *lines) Line(line []byte) { _, _ = h.batch.Write(line) } // never fails

// prompt is a handler that does not let a warning wait.
type prompt struct {
	slog.Handler
	batch *batch
}

func (h *prompt) Handle(ctx context.Context, r slog.Record) error {
	err := h.Handler.Handle(ctx, r)
	if r.Level >= slog.LevelWarn {
		h.batch.flush()
	}
	return err
}

func (h *prompt) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &prompt{h.Handler.WithAttrs(attrs), h.batch}
}

func (h *prompt) WithGroup(name string) slog.Handler {
	return &prompt{h.Handler.WithGroup(name), h.batch}
}
