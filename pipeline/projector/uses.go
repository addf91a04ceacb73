package projector

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"millrace/pipeline/kafka"
)

// A topic may become unusable while its projections run: it is deleted, or a permission is
// withdrawn. The versions that need it are held, as at the start, and the other versions of
// the group continue.

// ranTopics has the topics of versions that have run. If one of them is deleted, that was
// somebody's intention or mistake: it is not created again.
type ranTopics struct {
	mu    sync.Mutex
	names map[string]bool // guarded by mu
}

func (r *ranTopics) add(wanted []wantedVersion) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range wanted {
		for name := range v.uses(false) {
			r.names[name] = true
		}
	}
}

func (r *ranTopics) has(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.names[name]
}

// uses returns what a worker does with the topics of a version. follows means that it owns no
// partitions.
func (v *wantedVersion) uses(follows bool) kafka.Uses {
	uses := kafka.Uses{}
	uses.Add(v.projection.From.Name, "READ")
	for _, name := range []string{v.record.Snapshots, v.record.Internal} {
		if name == "" {
			continue
		}
		if uses.Add(name, "READ"); !follows {
			uses.Add(name, "WRITE")
		}
	}
	if v.projection.Late != nil && !follows {
		uses.Add(v.projection.Late.Name, "WRITE")
	}
	return uses
}

// allUses returns what a worker does with the topics of versions.
func allUses(wanted []wantedVersion, follows bool) kafka.Uses {
	all := kafka.Uses{}
	for _, v := range wanted {
		for name, operations := range v.uses(follows) {
			all.Add(name, operations...)
		}
	}
	return all
}

// watchUses returns a function that ends when a topic of a loop cannot be used any more.
func (b *builder) watchUses(l *groupLoop) func(context.Context) error {
	uses := allUses(l.wanted, l.follows)
	return func(ctx context.Context) error { return kafka.WatchUses(ctx, b.w.Kafka, uses) }
}

// usable returns why topics of versions cannot be used. A topic that is still to be created
// is no reason.
func (b *builder) usable(ctx context.Context, wanted []wantedVersion) error {
	why, err := kafka.Unusable(ctx, b.w.Kafka, allUses(wanted, b.options.replica))
	if err != nil {
		return fmt.Errorf("describing the topics: %w", err)
	}
	var faults []error
	for _, name := range slices.Sorted(maps.Keys(why)) {
		if !errors.Is(why[name], kafka.ErrNoTopic) || b.ran.has(name) {
			faults = append(faults, why[name])
		}
	}
	return errors.Join(faults...)
}
