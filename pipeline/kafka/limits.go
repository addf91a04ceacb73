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

// Limits are how many bytes a batch of records may have, by topic: what its
// max.message.bytes says. A topic that is not among them is one of which nobody has
// asked, or it could not be read; for all of them, that is nil.
type Limits map[string]int

const (
	// defaultBatch is what topics take unless they are told otherwise.
	defaultBatch = 1_000_000
	// batchHead is room for what stands in a batch around a record's key, value and
	// headers.
	batchHead = 512
	// maxBatch bounds what is written by what is read, whatever a topic takes. It
	// leaves room in a request of 100 MiB, which is as much as the client sends.
	maxBatch = maxDecompressBatchBytes
)

// limitsPatience bounds how long brokers may take to say what topics take: it is
// good to know, but there is a default.
const limitsPatience = 5 * time.Second

// Record returns how many bytes a record of a topic may have: its key, value and
// headers.
func (l Limits) Record(topic string) int { return l.batch(topic) - batchHead }

func (l Limits) batch(topic string) int {
	if n, ok := l[topic]; ok {
		return n
	}
	return defaultBatch
}

// A Limited is a [pipeline.Handler] that looks at the size of what it emits.
type Limited interface {
	// Limit is called between batches: before the first, and when a topic has not
	// taken one. The topics are those of [LoopConfig].Writes.
	Limit(Limits)
}

// askLimits asks what topics take, and cuts that to so many bytes. The error names
// those of which it cannot be read, but for one that does not exist, which is made
// by default.
func askLimits(ctx context.Context, cl *kgo.Client, topics []string, most int) (Limits, error) {
	ctx, cancel := context.WithTimeout(ctx, limitsPatience)
	defer cancel()
	adm, limits := kadm.NewClient(cl), Limits{}
	var faults []error
	// Each alone: the client makes one answer of many, see [Describe].
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
				limits[topic] = cut(n, most)
			}
		case !errors.Is(err, kerr.UnknownTopicOrPartition):
			faults = append(faults, fmt.Errorf("topic %s: %w", topic, err))
		}
	}
	return limits, errors.Join(faults...)
}

// cut leaves room for a batch's head, without which there is none.
func cut(n, most int) int { return max(batchHead, min(n, most, maxBatch)) }

// maxMessage returns the max.message.bytes of a topic.
func maxMessage(c kadm.ResourceConfig) (int, bool) {
	i := slices.IndexFunc(c.Configs, func(entry kadm.Config) bool { return entry.Key == "max.message.bytes" })
	if i < 0 {
		return 0, false
	}
	n, err := strconv.Atoi(c.Configs[i].MaybeValue())
	return n, err == nil
}
