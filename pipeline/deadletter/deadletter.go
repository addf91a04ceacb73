// Package deadletter writes and reads the records of dead-letter topics. It is the
// only package that knows their headers.
//
// Start at [New].
package deadletter

import (
	"strconv"
	"strings"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/event"
)

// AddDerived appends to a dead letter what cannot be seen in its record.
func AddDerived(t event.Derived, letter *pipeline.Record) {
	add := func(name, value string) {
		if value != "" {
			letter.Headers = append(letter.Headers, pipeline.Header{Key: name, Value: []byte(value)})
		}
	}
	add(HeaderEventID, string(t.ID))
	add(HeaderEventKey, string(t.Key))
	if !t.Time.IsZero() {
		add(HeaderEventTime, t.Time.UTC().Format(time.RFC3339Nano))
	}
}

// What stands for a stage in a dead letter that no stage made.
const (
	StageDecode = "decode"
	StageEncode = "encode"
)

// Headers of a dead letter. Key, value and the headers it came with stay as
// they are, but for a value that is too large for the topic.
const (
	HeaderSourceTopic     = "dlq.source.topic"
	HeaderSourcePartition = "dlq.source.partition"
	HeaderSourceOffset    = "dlq.source.offset"
	HeaderPipeline        = "dlq.pipeline"
	HeaderStage           = "dlq.stage"
	HeaderReason          = "dlq.reason"
	HeaderError           = "dlq.error"
	HeaderAttempt         = "dlq.attempt"
	HeaderTime            = "dlq.time"
	HeaderTruncated       = "dlq.truncated" // the value's size before it was cut off

	// Of an event without an envelope, what its topic's expressions say.
	HeaderEventID   = "dlq.event.id"
	HeaderEventKey  = "dlq.event.key"
	HeaderEventTime = "dlq.event.time"
)

const maxErrorBytes = 1024

// Truncate cuts off the value of a dead letter of more than so many bytes.
func Truncate(letter *pipeline.Record, most int) {
	if room := most - len(letter.Key) - pipeline.HeadersSize(letter.Headers); len(letter.Value) > room {
		letter.Headers = append(letter.Headers, pipeline.Header{Key: HeaderTruncated, Value: []byte(strconv.Itoa(len(letter.Value)))})
		letter.Value = letter.Value[:max(0, room-64)]
	}
}

// New returns the dead letter of a record, for a topic: by is what could
// not take it, and where in it.
func New(in *pipeline.Record, topic, by, stage string, err error, now time.Time) pipeline.Record {
	attempt := 1
	if before, ok := in.Header(HeaderAttempt); ok {
		if n, err := strconv.Atoi(string(before)); err == nil && n > 0 {
			attempt = n + 1
		}
	}
	letter := *in
	letter.Topic, letter.Partition = topic, pipeline.KeyPartition
	letter.Headers = make([]pipeline.Header, 0, len(in.Headers)+10)
	for _, have := range in.Headers {
		if !IsHeader(have.Key) {
			letter.Headers = append(letter.Headers, have)
		}
	}
	add := func(key, value string) {
		letter.Headers = append(letter.Headers, pipeline.Header{Key: key, Value: []byte(value)})
	}
	add(HeaderSourceTopic, in.Topic)
	add(HeaderSourcePartition, strconv.Itoa(int(in.Partition)))
	add(HeaderSourceOffset, strconv.FormatInt(in.Offset, 10))
	add(HeaderPipeline, by)
	add(HeaderStage, stage)
	add(HeaderReason, string(pipeline.ReasonOf(err)))
	text := err.Error()
	add(HeaderError, strings.ToValidUTF8(text[:min(len(text), maxErrorBytes)], ""))
	add(HeaderAttempt, strconv.Itoa(attempt))
	add(HeaderTime, now.UTC().Format(time.RFC3339Nano))
	return letter
}

// IsHeader reports whether a header is one that a dead letter gets anew, so
// that a letter which was sent back and failed again does not collect them.
func IsHeader(key string) bool {
	switch key {
	case HeaderSourceTopic, HeaderSourcePartition, HeaderSourceOffset, HeaderPipeline, HeaderStage,
		HeaderReason, HeaderError, HeaderAttempt, HeaderTime, HeaderTruncated, HeaderEventID, HeaderEventKey, HeaderEventTime:
		return true
	}
	return false
}
