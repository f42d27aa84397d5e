package worker

const defaultAPI = "message/send"
