package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
)

// shop is the client that acts for people.
const shop = "demo-shop"

// exchange lets the shop exchange a person's token at the gate for one that
// says that it acts for that person.
func (h *house) exchange(ctx context.Context, c *http.Client, who person) (token string, r reply, err error) {
	theirs, err := os.ReadFile(h.dir.path("tokens/" + who.File))
	if err != nil {
		return "", r, err
	}
	secret, err := os.ReadFile(h.dir.path(secretFile))
	if err != nil {
		return "", r, err
	}
	form := url.Values{
		"grant_type":         {"urn:ietf:params:oauth:grant-type:token-exchange"},
		"subject_token":      {string(theirs)},
		"subject_token_type": {"urn:ietf:params:oauth:token-type:access_token"},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.gateURL+"/oauth2/token", strings.NewReader(form.Encode()))
	if err != nil {
		return "", r, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(shop, strings.TrimSpace(string(secret)))
	if r, err = do(c, req); err != nil {
		return "", r, err
	}
	var got struct {
		Token string `json:"access_token"`
	}
	if err := json.Unmarshal([]byte(r.body), &got); err != nil || r.status != http.StatusOK || got.Token == "" {
		return "", r, fmt.Errorf("the exchange of the %s's token was answered %d %s", who, r.status, r.body)
	}
	return got.Token, r, nil
}

// exchanged plays a token's way from the issuer through the gate's token
// service to the API.
func (s *story) exchanged(ctx context.Context) error {
	s.scene("exchanged", "The shop's back end acts for the auditor: it exchanges the auditor's token at the gate for one of\nfive minutes that names both, and reads an order with that. Both steps have their record.")
	token, r, err := s.exchange(ctx, s.http, auditor)
	if err != nil {
		return err
	}
	s.print.linef("  > POST /oauth2/token with the auditor's token, as %s", shop)
	s.print.linef("  < %d", r.status)
	if _, err := s.record(ctx, r.id, "token", "200"); err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.gateURL+"/v1/orders/1042", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	read, err := do(s.http, req)
	if err != nil {
		return err
	}
	s.print.linef("  > GET /v1/orders/1042 as %s for the auditor", shop)
	s.print.linef("  < %d %s", read.status, strings.TrimSpace(read.body))
	if read.status != http.StatusOK {
		return fmt.Errorf("the exchanged token was answered %d", read.status)
	}
	_, err = s.record(ctx, read.id, "200", "allow")
	return err
}
