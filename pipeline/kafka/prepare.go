package kafka

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline"
)

// maxPrefixes bounds the memory for the prefixes of values that a session has seen.
const maxPrefixes = 1 << 14

// prefix is the start of a value.
type prefix [pipeline.PrefixSize]byte

// preparer finds the records whose value begins in a new way and passes them to a
// [pipeline.Preparer]. The goroutine of the session owns it.
type preparer struct {
	seen  map[prefix]bool
	since time.Time // of the first prefix in seen
	last  prefix    // the prefix of most records, which needs no look-up
}

// forgetPrefixes is the age at which prefixes are forgotten, because the handler does not
// remember the results for ever either.
const forgetPrefixes = 20 * time.Second

// prepare passes the records with new prefixes to the handler, if it is a Preparer.
func (p *preparer) prepare(ctx context.Context, h pipeline.Handler, fetches kgo.Fetches) error {
	to, ok := h.(pipeline.Preparer)
	if !ok {
		return nil
	}
	if now := time.Now(); now.Sub(p.since) > forgetPrefixes || len(p.seen) >= maxPrefixes {
		*p = preparer{seen: map[prefix]bool{}, since: now}
	}
	var found []*pipeline.Record
	fetches.EachPartition(func(f kgo.FetchTopicPartition) {
		for _, r := range f.Records {
			if len(r.Value) < pipeline.PrefixSize || prefix(r.Value) == p.last || r.Attrs.IsControl() {
				continue
			}
			p.last = prefix(r.Value)
			if p.seen[p.last] {
				continue
			}
			p.seen[p.last] = true
			in := &pipeline.Record{}
			setRecord(in, f.Topic, f.Partition, r)
			found = append(found, in)
		}
	})
	if len(found) < 2 { // Handle does it as fast
		return nil
	}
	err := to.Prepare(ctx, found)
	if err != nil {
		*p = preparer{} // the batch is handled again
	}
	return err
}
