package codec

// SubjectNames says under which subjects the schemas of a topic are in the registry. The
// rules are those of Confluent's subject name strategies. The zero value is
// [TopicRecordName].
type SubjectNames string

// The values of SubjectNames.
const (
	// TopicRecordName: TOPIC-RECORD, with the full name of the record.
	TopicRecordName SubjectNames = "topic_record"
	// TopicName: TOPIC-value. The topic has one event type.
	TopicName SubjectNames = "topic"
	// RecordName: the full name of the record. All topics share the subject.
	RecordName SubjectNames = "record"
)

// Value returns the subject of the schema of a topic's values.
func (n SubjectNames) Value(topic string, s *Schema) string {
	switch n {
	case TopicName:
		return topic + "-value"
	case RecordName:
		return s.Name()
	}
	return topic + "-" + s.Name()
}

// KeySubject returns the subject of the schema of a topic's keys, whatever the subjects of
// the values are: Confluent's serializers have a separate setting for keys, whose default
// is this one.
func KeySubject(topic string) string { return topic + "-key" }
