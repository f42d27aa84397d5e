package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// A step is something that happened to an event.
type step struct {
	at    time.Time
	where string
	what  string
}

// story collects from the log what happened to each event, as grep for its ID would. It
// remembers the last thousand events.
type story struct {
	mu    sync.Mutex
	steps map[string][]step
	order []string
}

func newStory() *story { return &story{steps: make(map[string][]step)} }

// complete returns the steps of an event that was answered. The reply is on the phone
// before the last lines about it are in the log, so it waits for them, a second at most.
func (s *story) complete(ctx context.Context, event string) []step {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for {
		s.mu.Lock()
		steps := slices.Clone(s.steps[event])
		s.mu.Unlock()
		if len(steps) >= 3 { // published, handled, sent
			return steps
		}
		select {
		case <-ctx.Done():
			return steps
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (s *story) add(event string, st step) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.steps[event]; !ok {
		if s.order = append(s.order, event); len(s.order) > 1000 {
			delete(s.steps, s.order[0])
			s.order = s.order[1:]
		}
	}
	s.steps[event] = append(s.steps[event], st)
}

// handler returns a log handler that feeds the story and passes on to next what next
// wants to see.
func (s *story) handler(next slog.Handler) slog.Handler { return &storyHandler{story: s, next: next} }

type storyHandler struct {
	story *story
	next  slog.Handler
	attrs []slog.Attr
}

func (h *storyHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelInfo || h.next.Enabled(ctx, l)
}

func (h *storyHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &storyHandler{h.story, h.next.WithAttrs(attrs), slices.Concat(h.attrs, attrs)}
}

func (h *storyHandler) WithGroup(name string) slog.Handler {
	return &storyHandler{h.story, h.next.WithGroup(name), h.attrs}
}

// stages are the log's messages that tell an event's story, and who writes them.
var stages = map[string]string{
	"event published":   "gateway",
	"event handled":     "worker",
	"event not handled": "worker",
	"message sent":      "sender",
}

func (h *storyHandler) Handle(ctx context.Context, r slog.Record) error {
	if where, ok := stages[r.Message]; ok {
		event, took := "", time.Duration(0)
		look := func(a slog.Attr) bool {
			switch a.Key {
			case "event":
				event = a.Value.String()
			case "took":
				took, _ = a.Value.Any().(time.Duration)
			}
			return true
		}
		for _, a := range h.attrs {
			look(a)
		}
		r.Attrs(look)
		h.story.add(event, step{r.Time, where, fmt.Sprintf("%s, took %s", r.Message, milliseconds(took))})
	}
	if !h.next.Enabled(ctx, r.Level) {
		return nil
	}
	return h.next.Handle(ctx, r)
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}

// printSteps prints steps in their order in time.
func printSteps(w io.Writer, start time.Time, event string, steps []step) {
	slices.SortStableFunc(steps, func(a, b step) int { return a.at.Compare(b.at) })
	_, _ = fmt.Fprintf(w, "event %s\n", event)
	for _, s := range steps {
		_, _ = fmt.Fprintf(w, "  %9s  %-8s %s\n", milliseconds(s.at.Sub(start)), s.where, s.what)
	}
}
