package zone

import (
	"errors"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"millrace/pipeline/expr/wording"
)

// zoned is a part of a time that CEL computes in a time zone.
type zoned struct {
	function, overload string
	of                 func(time.Time) int
}

func zonedParts() []zoned {
	return []zoned{
		{overloads.TimeGetFullYear, overloads.TimestampToYearWithTz, time.Time.Year},
		{overloads.TimeGetMonth, overloads.TimestampToMonthWithTz, func(t time.Time) int { return int(t.Month()) - 1 }},
		{overloads.TimeGetDayOfYear, overloads.TimestampToDayOfYearWithTz, func(t time.Time) int { return t.YearDay() - 1 }},
		{overloads.TimeGetDayOfMonth, overloads.TimestampToDayOfMonthZeroBasedWithTz, func(t time.Time) int { return t.Day() - 1 }},
		{overloads.TimeGetDate, overloads.TimestampToDayOfMonthOneBasedWithTz, time.Time.Day},
		{overloads.TimeGetDayOfWeek, overloads.TimestampToDayOfWeekWithTz, func(t time.Time) int { return int(t.Weekday()) }},
		{overloads.TimeGetHours, overloads.TimestampToHoursWithTz, time.Time.Hour},
		{overloads.TimeGetMinutes, overloads.TimestampToMinutesWithTz, time.Time.Minute},
		{overloads.TimeGetSeconds, overloads.TimestampToSecondsWithTz, time.Time.Second},
		{overloads.TimeGetMilliseconds, overloads.TimestampToMillisecondsWithTz, func(t time.Time) int { return t.Nanosecond() / 1e6 }},
	}
}

// Options replaces CEL's functions whose result depends on the machine: the zones of
// its own data, and timestamp(text), which keeps the machine's zone if the text has the
// same offset. All timestamps are in UTC.
func (s *Set) Options() []cel.EnvOption {
	options := []cel.EnvOption{
		cel.Function(overloads.TypeConvertTimestamp, cel.Overload(overloads.StringToTimestamp, []*cel.Type{cel.StringType}, cel.TimestampType,
			cel.UnaryBinding(func(v ref.Val) ref.Val {
				out := v.(types.String).ConvertToType(types.TimestampType)
				if t, ok := out.(types.Timestamp); ok {
					return types.Timestamp{Time: t.Time.UTC()}
				}
				return out
			}))),
	}
	for _, f := range zonedParts() {
		options = append(options, cel.Function(f.function, cel.MemberOverload(f.overload, []*cel.Type{cel.TimestampType, cel.StringType}, cel.IntType,
			cel.BinaryBinding(func(t, name ref.Val) ref.Val {
				loc, err := s.Load(string(name.(types.String)))
				if err != nil {
					return types.WrapErr(err)
				}
				return types.Int(f.of(t.(types.Timestamp).Time.In(loc)))
			}))))
	}
	return options
}

// Functions returns the names of the functions that have a time zone as their argument.
func Functions() (names []string) {
	for _, f := range zonedParts() {
		names = append(names, f.function)
	}
	return names
}

// Hint returns what to write instead of a zone for which Load returned an error.
func (s *Set) Hint(err error) string {
	var unknown *UnknownError
	switch {
	case !errors.As(err, &unknown):
		return "write an offset as '+05:30'"
	case len(unknown.Similar) > 0:
		return "did you mean \"" + unknown.Similar[0] + "\"?"
	}
	if near := wording.Nearest(unknown.Name, s.Names()); near != "" && unknown.Name != "Local" {
		return near
	}
	return "name a zone such as 'Europe/Berlin', or 'UTC'"
}
