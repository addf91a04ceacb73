package kafka

import (
	"fmt"
	"math"
	"time"
)

// The timestamp of a record is in milliseconds since 1970. The client computes it from
// nanoseconds in 64 bits, which end in April 2262: a later time would become another one,
// such as 2016 for 2600.
const (
	firstMilli = 0
	lastMilli  = math.MaxInt64 / int64(time.Millisecond)
)

// CheckTime returns an error for a time that cannot be the timestamp of a record.
func CheckTime(t time.Time) error {
	at := clamped(t)
	switch {
	case at.Equal(t):
		return nil
	case t.Before(at):
		return fmt.Errorf("%s is before 1970, which a Kafka record's time cannot be", timeText(t))
	}
	return fmt.Errorf("%s is after %s, the last time that a Kafka record can have", timeText(t), timeText(at))
}

// timeText returns a time for a message; a time outside of the years 0 to 9999 is a number.
func timeText(t time.Time) string {
	if year := t.UTC().Year(); year < 0 || year > 9999 {
		return fmt.Sprintf("the time %d (in milliseconds since 1970)", t.UnixMilli())
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// recordTime returns the timestamp of a record that is written: the nearest possible one.
// Records of events have been checked with [CheckTime]; a snapshot has the time of its
// event, which may be any, and is written nevertheless. The zero time stays: the client
// then takes the current time.
func recordTime(t time.Time) time.Time {
	if s := t.Unix(); s >= 0 && s < lastMilli/1000 || t.IsZero() {
		return t
	}
	return clamped(t)
}

func clamped(t time.Time) time.Time {
	switch first, last := time.UnixMilli(firstMilli), time.UnixMilli(lastMilli); {
	case t.Before(first):
		return first
	case t.After(last):
		return last
	}
	return t
}
