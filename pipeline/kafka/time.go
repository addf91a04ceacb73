package kafka

import (
	"fmt"
	"math"
	"time"

	"millrace/pipeline"
)

// The timestamp of a record is in milliseconds since 1970. Brokers take negative ones, but
// -1 means none there, and clients and stream processors refuse the others. This client
// computes a timestamp from nanoseconds in 64 bits, which end in April 2262: a later time
// would become another one, such as 2016 for 2600.
const (
	firstMilli = 0
	lastMilli  = math.MaxInt64 / int64(time.Millisecond)
)

// checkTime returns an error for a time that cannot be the timestamp of a record.
func checkTime(t time.Time) error {
	switch ms := t.UnixMilli(); {
	case t.Before(time.UnixMilli(firstMilli)):
		return fmt.Errorf("%s is before 1970, which a Kafka record's time cannot be", timeText(t))
	case ms > lastMilli:
		return fmt.Errorf("%s is after %s, the last time that a Kafka record can have", timeText(t), timeText(time.UnixMilli(lastMilli)))
	}
	return nil
}

// timeText returns a time for a message.
func timeText(t time.Time) string {
	at := pipeline.Time(t)
	if !at.HasText() {
		return fmt.Sprintf("the time %s (in microseconds since 1970)", at)
	}
	return at.String()
}

// recordTime returns the timestamp of a record that is written: the nearest possible one.
// A [Gate] has checked the records of events, so a time is replaced only where the broker
// sets it. A snapshot has the time of its event, which may be any, and is written
// nevertheless. The zero time stays: the client then takes the current time.
func recordTime(t time.Time) time.Time {
	if s := t.Unix(); s >= 0 && s < lastMilli/1000 || t.IsZero() {
		return t
	}
	if t.Before(time.UnixMilli(firstMilli)) {
		return time.UnixMilli(firstMilli)
	}
	return time.UnixMilli(min(t.UnixMilli(), lastMilli))
}

// readTime returns the time of a record that was read. The client multiplies the timestamp
// by a million, modulo 2^64. That is no whole number of milliseconds if it overflows, and
// the inverse of 5^6 gives the timestamp back, up to 2^57 milliseconds (4.5 million years)
// from 1970.
func readTime(t time.Time) time.Time {
	if t.Nanosecond()%int(time.Millisecond) == 0 {
		return t
	}
	const inverse = 0x10fb65668c26139 // of 5^6 = 15625, modulo 2^58
	return time.UnixMilli((t.UnixNano() >> 6) * inverse << 6 >> 6)
}
