package deadletter

import (
	"strconv"
	"strings"

	"millrace/pipeline"
)

// Headers of a record that was sent back to its source topic. The topic may have other
// readers, which have taken the record already: only the pipeline handles it.
const (
	headerRedrive   = "dlq.redrive"    // the pipeline that it returns to
	headerRedriveOf = "dlq.redrive.of" // PARTITION/OFFSET of the record that failed
)

// headerCopy marks a letter that a redrive wrote to the end of its topic, because it
// was not sent back. Its first copy is in front of it, unless retention deleted it.
const headerCopy = "dlq.copy"

// Original returns the record that failed, addressed to its source topic. It has
// the key, value, time and headers of that record, the attempt of the letter, from
// which [New] continues to count, and headers for [RedrivenTo], [IsTaken] and [RedrivenFrom]. The
// partition follows from the key. The value is incomplete if the letter is truncated.
func Original(letter *pipeline.Record) pipeline.Record {
	l := Parse(letter)
	back := *letter
	if !l.RecordTime.IsZero() {
		back.Time = l.RecordTime
	}
	back.Topic, back.Partition = l.SourceTopic, pipeline.KeyPartition
	back.Headers = make([]pipeline.Header, 0, len(letter.Headers))
	for _, have := range letter.Headers {
		if have.Key == headerAttempt || have.Key == headerSourceID || !isOwn(have.Key) {
			back.Headers = append(back.Headers, have)
		}
	}
	of := strconv.Itoa(int(l.SourcePartition)) + "/" + strconv.FormatInt(l.SourceOffset, 10)
	back.Headers = append(back.Headers, pipeline.Header{Key: headerRedrive, Value: []byte(l.Pipeline)}, pipeline.Header{Key: headerRedriveOf, Value: []byte(of)})
	return back
}

// Copy returns a letter as it is written to the end of its own topic again.
func Copy(letter *pipeline.Record) pipeline.Record {
	again := *letter
	if !IsCopy(letter) {
		again.Headers = append(make([]pipeline.Header, 0, len(letter.Headers)+1), letter.Headers...)
		again.Headers = append(again.Headers, pipeline.Header{Key: headerCopy, Value: []byte("1")})
	}
	return again
}

// IsCopy reports whether a letter is the result of [Copy].
func IsCopy(letter *pipeline.Record) bool {
	_, ok := letter.Header(headerCopy)
	return ok
}

// RedrivenTo returns the pipeline that a record of a source topic was sent back to, nil
// if it was not sent back. Every other reader of the topic skips the record.
func RedrivenTo(r *pipeline.Record) []byte {
	for i := range r.Headers {
		if r.Headers[i].Key == headerRedrive {
			return r.Headers[i].Value
		}
	}
	return nil
}

// IsTaken reports whether a reader whose state is that of the topic with an id has taken a
// record before, because it was sent back. It has not if the record failed in an earlier
// topic of the same name. An id that is not known counts as the same.
func IsTaken(r *pipeline.Record, topicID string) bool {
	if RedrivenTo(r) == nil {
		return false
	}
	id, ok := r.Header(headerSourceID)
	return !ok || topicID == "" || string(id) == topicID
}

// RedrivenFrom returns the place of the record that failed, for a record that was sent
// back. ok is false if it is missing or unreadable.
func RedrivenFrom(r *pipeline.Record) (partition int32, offset int64, ok bool) {
	value, _ := r.Header(headerRedriveOf)
	before, after, _ := strings.Cut(string(value), "/")
	p, offset := parseInt(before, 32), parseInt(after, 64)
	return int32(p), offset, p >= 0 && offset >= 0
}

// Plain returns a record without the headers that a redrive added.
func Plain(in *pipeline.Record) *pipeline.Record {
	plain := *in
	plain.Headers = make([]pipeline.Header, 0, len(in.Headers))
	for _, have := range in.Headers {
		if !isOwn(have.Key) {
			plain.Headers = append(plain.Headers, have)
		}
	}
	return &plain
}
