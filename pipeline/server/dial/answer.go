package dial

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// maxText is how much of an answer with an error is read, in bytes.
const maxText = 4 << 10

// StatusError returns nil if the status of an answer is 200, else an error with the status
// and the detail of the problem, or the text of another body.
func StatusError(resp *http.Response) error {
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	return fmt.Errorf("%s: %s", resp.Status, Detail(resp))
}

// Detail returns what an answer with an error says: the detail of its problem, or the text of
// another body. It reads the body.
func Detail(resp *http.Response) string {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxText)) // only for the message
	text = bytes.TrimSpace(text)
	var problem struct{ Detail string }
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") && json.Unmarshal(text, &problem) == nil && problem.Detail != "" {
		return problem.Detail
	}
	return string(text)
}
