package kafka

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Limits holds what topics accept, by topic. A missing topic was not queried, or its
// configuration could not be read; the zero [Limit] applies to it. Nil Limits apply the
// zero Limit to all topics.
type Limits map[string]Limit

// A Limit is what a topic accepts of a record.
type Limit struct {
	// Bytes is the largest size of a batch of records: max.message.bytes. 0 means the
	// default.
	Bytes int
	// Before and After bound how far a record's time may be before and after the
	// broker's clock: message.timestamp.before.max.ms and .after.max.ms. 0 means no
	// bound.
	Before, After time.Duration
	// By is why Bytes is less than the max.message.bytes of the topic, "" if it is not.
	By string
	// AppendTime means that the broker replaces the time of each record:
	// message.timestamp.type is LogAppendTime.
	AppendTime bool
	// Keyed means that every record needs a key: cleanup.policy contains compact.
	Keyed bool
}

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
	if n := l[topic].Bytes; n > 0 {
		return n
	}
	return defaultBatch
}

// A SizeLimited is a [pipeline.Handler] that checks the records it emits.
type SizeLimited interface {
	// SetLimits is called between batches: before the first one, and when the limits of a
	// topic have changed. The topics are those of [LoopConfig].Writes.
	SetLimits(Limits)
}

// Largest returns the size of the largest batch that one of the topics takes, in bytes, and
// the topic.
func (l Limits) Largest(topics ...string) (topic string, bytes int) {
	for _, name := range topics {
		if n := l.batch(name); n > bytes {
			topic, bytes = name, n
		}
	}
	return topic, bytes
}

// ReadLimits returns the limits of topics. See fetchLimits for the error.
func ReadLimits(ctx context.Context, cfg Config, topics ...string) (Limits, error) {
	cfg.Registerer = nil // no metrics for such a short-lived client
	cl, err := openClient(cfg)
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	return fetchLimits(ctx, cl, topics, maxBatch)
}

// fetchLimits reads the limits of topics, their sizes clamped to maxBytes. The error names
// the topics whose limits cannot be read. A topic that does not exist is no error: it
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
			limits[topic] = limitOf(c).clamp(maxBytes)
		case !errors.Is(err, kerr.UnknownTopicOrPartition):
			faults = append(faults, fmt.Errorf("topic %s: %w", topic, err))
		}
	}
	return limits, errors.Join(faults...)
}

// limitOf reads the limit from the configuration of a topic. What the configuration lacks
// is not limited: brokers before 3.6 have one setting for both directions of time.
func limitOf(c kadm.ResourceConfig) (l Limit) {
	for _, entry := range c.Configs {
		value := entry.MaybeValue()
		switch entry.Key {
		case "max.message.bytes":
			if n, err := strconv.Atoi(value); err == nil {
				l.Bytes = max(n, batchHead)
			}
		case "message.timestamp.before.max.ms":
			l.Before = bound(value)
		case "message.timestamp.after.max.ms":
			l.After = bound(value)
		case "message.timestamp.type":
			l.AppendTime = value == "LogAppendTime"
		case "cleanup.policy":
			l.Keyed = strings.Contains(value, "compact")
		}
	}
	return l
}

// bound returns a number of milliseconds as a duration, at least one; 0 if it is longer
// than a duration can be, or no number.
func bound(millis string) time.Duration {
	n, err := strconv.ParseInt(millis, 10, 64)
	if err != nil || n > int64(maxBound/time.Millisecond) {
		return 0
	}
	return max(time.Duration(n)*time.Millisecond, time.Millisecond)
}

// maxBound is shorter than the time that the client can express before and after now.
const maxBound = 200 * 365 * 24 * time.Hour

// clamp bounds the size from above, and from below by the head of a batch, so
// [Limits.MaxRecord] is not negative.
func (l Limit) clamp(maxBytes int) Limit {
	if l.Bytes > maxBatch {
		l.Bytes, l.By = maxBatch, "no program writes larger batches"
	}
	if l.Bytes > maxBytes {
		l.Bytes, l.By = maxBytes, "the topic's max.message.bytes was raised after this worker had started: restart it, or raise --memory"
	}
	if l.Bytes > 0 {
		l.Bytes = max(batchHead, l.Bytes)
	}
	return l
}
