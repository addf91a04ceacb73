package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Limits holds the largest size of a batch of records in bytes, by topic: the topic's
// max.message.bytes. A missing topic was not queried, or its limit could not be read;
// the default applies to it. Nil Limits apply the default to all topics.
type Limits map[string]int

const (
	// defaultBatch is slightly below Kafka's default max.message.bytes, 1 MiB.
	defaultBatch = 1_000_000
	// batchHead is reserved for the bytes of a batch other than a record's key, value
	// and headers.
	batchHead = 512
	// maxBatch keeps us from writing batches that we could not read, independent of
	// the topic's limit. Such a batch also fits into a request of 100 MiB, the
	// largest that the client sends.
	maxBatch = maxDecompressBatchBytes
)

// limitsTimeout bounds the queries for topic limits. It is short, because the default
// limits are usable.
const limitsTimeout = 5 * time.Second

// MaxRecord returns the largest size of a record of a topic, in bytes: key, value and
// headers together.
func (l Limits) MaxRecord(topic string) int { return l.batch(topic) - batchHead }

func (l Limits) batch(topic string) int {
	if n, ok := l[topic]; ok {
		return n
	}
	return defaultBatch
}

// A SizeLimited is a [pipeline.Handler] that checks the size of the records it emits.
type SizeLimited interface {
	// SetLimits is called between batches: before the first one, and when a topic's limit
	// has changed. The topics are those of [LoopConfig].Writes.
	SetLimits(Limits)
}

// fetchLimits reads the limits of topics, each clamped to maxBytes. The error names
// the topics whose limit cannot be read. A topic that does not exist is no error: it
// will be created with the default.
func fetchLimits(ctx context.Context, cl *kgo.Client, topics []string, maxBytes int) (Limits, error) {
	ctx, cancel := context.WithTimeout(ctx, limitsTimeout)
	defer cancel()
	adm, limits := kadm.NewClient(cl), Limits{}
	var faults []error
	// One request per topic: the client merges the answers of several, see [Describe].
	for _, topic := range topics {
		configs, err := adm.DescribeTopicConfigs(ctx, topic)
		var c kadm.ResourceConfig
		if err == nil {
			c, err = configs.On(topic, nil)
		}
		if err == nil {
			err = c.Err
		}
		switch {
		case err == nil:
			if n, ok := maxMessage(c); ok {
				limits[topic] = clampLimit(n, maxBytes)
			}
		case !errors.Is(err, kerr.UnknownTopicOrPartition):
			faults = append(faults, fmt.Errorf("topic %s: %w", topic, err))
		}
	}
	return limits, errors.Join(faults...)
}

// clampLimit bounds a limit from above, and from below by the head of a batch, so
// [Limits.MaxRecord] is not negative.
func clampLimit(n, maxBytes int) int { return max(batchHead, min(n, maxBytes, maxBatch)) }

// maxMessage returns the max.message.bytes of a topic.
func maxMessage(c kadm.ResourceConfig) (int, bool) {
	i := slices.IndexFunc(c.Configs, func(entry kadm.Config) bool { return entry.Key == "max.message.bytes" })
	if i < 0 {
		return 0, false
	}
	n, err := strconv.Atoi(c.Configs[i].MaybeValue())
	return n, err == nil
}
