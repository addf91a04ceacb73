// Package deadletter writes and reads the records of dead-letter topics. It is the
// only package that knows their headers.
//
// Start at [New] for writing and [Parse] for reading; redrive.go is about the way back. A dead letter keeps the key,
// value, time and headers of the record that failed, and describes the failure in
// headers of its own, whose names start with "dlq.". The format is Millrace's own.
// Package e2e checks the same names from outside the programs.
//
// The package has no state; every function may be called from any goroutine.
package deadletter

import (
	"strconv"
	"strings"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/event"
)

// Stage names in dead letters that no stage made.
const (
	StageDecode = "decode" // the record could not be decoded
	StageEncode = "encode" // the result could not be encoded
)

// Headers of a dead letter. Numbers are decimal, times are texts of [pipeline.Time].
const (
	headerSourceTopic     = "dlq.source.topic"
	headerSourceID        = "dlq.source.topic.id" // that Kafka gave the topic when it was created
	headerSourcePartition = "dlq.source.partition"
	headerSourceOffset    = "dlq.source.offset"
	headerPipeline        = "dlq.pipeline"
	headerStage           = "dlq.stage"
	headerReason          = "dlq.reason"
	headerError           = "dlq.error"
	headerAttempt         = "dlq.attempt"
	headerTime            = "dlq.time"
	headerRecordTime      = "dlq.record.time" // the record's time, if the letter has another one
	headerTruncated       = "dlq.truncated"   // the size of the value before truncation, in bytes

	// The envelope of an event whose record carries none: what the expressions of
	// its topic return. Each is missing if there is no such expression.
	headerEventID   = "dlq.event.id"
	headerEventKey  = "dlq.event.key"
	headerEventTime = "dlq.event.time"
)

// isOwn reports whether a header is one of this package. New replaces all of them, so a
// letter that is sent back and fails again does not collect them.
func isOwn(name string) bool {
	switch name {
	case headerSourceTopic, headerSourceID, headerSourcePartition, headerSourceOffset, headerPipeline, headerStage, headerReason, headerError,
		headerAttempt, headerTime, headerRecordTime, headerTruncated, headerEventID, headerEventKey, headerEventTime,
		headerRedrive, headerRedriveOf, headerCopy:
		return true
	}
	return false
}

// maxErrorBytes bounds the error text in a header.
const maxErrorBytes = 1024

// truncatedRoom is reserved for headerTruncated when a value is cut: its name and
// up to 20 digits take less.
const truncatedRoom = 64

// Letter is the content of a dead letter's own headers. A header that is missing
// or unreadable leaves the value that the field's comment gives, else zero.
type Letter struct {
	SourceTopic     string // topic of the record that failed
	SourcePartition int32  // -1 if missing
	SourceOffset    int64  // -1 if missing

	Pipeline string // pipeline, or projection, that could not process the record
	Stage    string // its stage, or [StageDecode] or [StageEncode]
	Reason   pipeline.Reason
	Error    string    // at most 1024 bytes; "" only if the record is not a dead letter
	Attempt  int       // failures of this record so far, from 1; 1 if missing
	Time     time.Time // of the failure

	// RecordTime is the time of the record that failed, if the letter has another one.
	RecordTime time.Time

	// Truncated is the size of the value in bytes before it was cut: 0 if the value
	// is complete, -1 if the size is unreadable.
	Truncated int

	// The envelope that the topic's expressions gave the event.
	EventID, EventKey string
	EventTime         time.Time
}

// New returns the dead letter of a record, addressed to topic. by is the pipeline
// or projection that failed with err, and stage its stage. The letter shares key
// and value with the record. If the record was a dead letter before, the attempt
// continues from there.
func New(in *pipeline.Record, topic, by, stage string, err error, now time.Time) pipeline.Record {
	before, _ := in.Header(headerAttempt)
	letter := *in
	letter.Topic, letter.Partition = topic, pipeline.KeyPartition
	letter.Headers = make([]pipeline.Header, 0, len(in.Headers)+10)
	for _, have := range in.Headers {
		if !isOwn(have.Key) {
			letter.Headers = append(letter.Headers, have)
		}
	}
	add := func(key, value string) {
		letter.Headers = append(letter.Headers, pipeline.Header{Key: key, Value: []byte(value)})
	}
	add(headerSourceTopic, in.Topic)
	add(headerSourcePartition, strconv.Itoa(int(in.Partition)))
	add(headerSourceOffset, strconv.FormatInt(in.Offset, 10))
	add(headerPipeline, by)
	add(headerStage, stage)
	add(headerReason, string(pipeline.ReasonOf(err)))
	text := err.Error()
	add(headerError, strings.ToValidUTF8(text[:min(len(text), maxErrorBytes)], ""))
	add(headerAttempt, strconv.Itoa(failures(before)+1))
	add(headerTime, now.UTC().Format(time.RFC3339Nano))
	return letter
}

// SetSourceID sets the id of the source topic, unless it is "": see [IsTaken].
func SetSourceID(letter *pipeline.Record, id string) {
	if id != "" {
		letter.Headers = append(letter.Headers, pipeline.Header{Key: headerSourceID, Value: []byte(id)})
	}
}

// AddEnvelope adds the envelope that the topic's expressions gave the event: a
// reader of the letter cannot see it in the record.
func AddEnvelope(t event.Derived, letter *pipeline.Record) {
	add := func(name, value string) {
		if value != "" {
			letter.Headers = append(letter.Headers, pipeline.Header{Key: name, Value: []byte(value)})
		}
	}
	add(headerEventID, string(t.ID))
	add(headerEventKey, string(t.Key))
	if !t.Time.IsZero() {
		add(headerEventTime, pipeline.Time(t.Time).String())
	}
}

// SetTime sets the time of a letter, which is the time of the record that failed until
// then. If they differ, a header keeps the record's time for [Original]. The time of a
// letter that has this header is not the record's any more.
func SetTime(letter *pipeline.Record, at time.Time) {
	if at.Equal(letter.Time) {
		return
	}
	if _, ok := letter.Header(headerRecordTime); !ok {
		letter.Headers = append(letter.Headers[:len(letter.Headers):len(letter.Headers)], pipeline.Header{Key: headerRecordTime, Value: []byte(pipeline.Time(letter.Time).String())})
	}
	letter.Time = at
}

// Truncate cuts the value of a dead letter that is larger than limit, in bytes of
// [pipeline.Record.Size], and records the original size in a header. Key and
// headers are never cut.
func Truncate(letter *pipeline.Record, limit int) {
	if room := limit - len(letter.Key) - pipeline.HeadersSize(letter.Headers); len(letter.Value) > room {
		letter.Headers = append(letter.Headers, pipeline.Header{Key: headerTruncated, Value: []byte(strconv.Itoa(len(letter.Value)))})
		letter.Value = letter.Value[:max(0, room-truncatedRoom)]
	}
}

// failures reads the value of headerAttempt; 0 if it is missing or unreadable.
func failures(value []byte) int {
	if n, err := strconv.Atoi(string(value)); err == nil && n > 0 {
		return n
	}
	return 0
}

// Parse reads the own headers of a dead letter. Of a header that a record has
// twice, the last one is valid, as for [pipeline.Record.Header].
func Parse(letter *pipeline.Record) Letter {
	l := Letter{SourcePartition: -1, SourceOffset: -1, Attempt: 1}
	for _, h := range letter.Headers {
		switch text := string(h.Value); h.Key {
		case headerSourceTopic:
			l.SourceTopic = text
		case headerSourcePartition:
			l.SourcePartition = int32(parseInt(text, 32))
		case headerSourceOffset:
			l.SourceOffset = parseInt(text, 64)
		case headerPipeline:
			l.Pipeline = text
		case headerStage:
			l.Stage = text
		case headerReason:
			l.Reason = pipeline.Reason(text)
		case headerError:
			l.Error = text
		case headerAttempt:
			l.Attempt = max(1, failures(h.Value))
		case headerTime:
			l.Time = parseTime(text)
		case headerRecordTime:
			l.RecordTime = parseTime(text)
		case headerTruncated:
			l.Truncated = int(parseInt(text, 64))
		case headerEventID:
			l.EventID = text
		case headerEventKey:
			l.EventKey = text
		case headerEventTime:
			l.EventTime = parseTime(text)
		}
	}
	return l
}

// parseInt returns -1 for a text that is not a number of that many bits.
func parseInt(text string, bits int) int64 {
	n, err := strconv.ParseInt(text, 10, bits)
	if err != nil {
		return -1
	}
	return n
}

// parseTime returns the zero time for a text that is not a [pipeline.Time].
func parseTime(text string) time.Time {
	at, err := pipeline.ParseTime(text)
	if err != nil {
		return time.Time{}
	}
	return at.Std()
}
