package event

import (
	"log/slog"
	"strings"
	"sync"

	"millrace/pipeline/codec"
	"millrace/pipeline/codec/resolve"
)

// A Drift logs the fields of writers that our schemas lack, which are dropped when an
// event is read: once per topic and writer's schema. It is safe for concurrent use.
type Drift struct {
	log *slog.Logger

	mu   sync.Mutex
	seen map[drifted]bool // guarded by mu
}

type drifted struct {
	topic, typ string
	ref        codec.SchemaRef
}

// maxDropped is the maximum number of fields in a message.
const maxDropped = 20

// NewDrift returns a Drift for a process.
func NewDrift(log *slog.Logger) *Drift { return &Drift{log: log, seen: map[drifted]bool{}} }

// note logs the dropped fields of a schema, unless it did before. d may be nil.
func (d *Drift) note(topic string, ref codec.SchemaRef, typ string, changes []resolve.Change) {
	var fields []string
	more := 0
	for _, c := range changes {
		switch {
		case c.Kind != resolve.Dropped:
		case len(fields) < maxDropped:
			fields = append(fields, c.Path)
		default:
			more++
		}
	}
	if d == nil || len(fields) == 0 || !d.first(drifted{topic, typ, ref}) {
		return
	}
	d.log.Warn("the writer's schema has fields that ours lacks: they are dropped; add them to our schema to keep them",
		"topic", topic, "type", typ, "schema", ref.String(), "fields", strings.Join(fields, ", "), "more", more)
}

func (d *Drift) first(key drifted) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.seen[key] {
		return false
	}
	d.seen[key] = true
	return true
}
